/** Many nodes on a network that cuts, delays and restarts them: what must hold in the end. */
import { cpuUsage } from 'node:process';
import t, { type Test } from 'tap';
import { digestOf } from '../../src/membership/member-list.js';
import { newMembership, reachOf, step, timings } from '../../src/membership/membership-state.js';
import { facts, memberOf, SimNetwork } from './network.js';

/** Everybody up sees everybody up, over one connection each, with one list. */
function agree(t: Test, network: SimNetwork, what: string): void {
  const up = [...network.nodes.values()].filter((node) => node.up);
  const member = up.filter(({ state, id }) => reachOf(state, id) !== 'removed');
  const lists = new Set(member.map(({ state }) => digestOf(state.members)));
  if (lists.size !== 1) t.fail(`${what}: ${lists.size} lists`);
  for (const a of member) {
    if (digestOf(a.disk) !== a.state.digest)
      t.fail(`${what}: the list of ${a.id} is not on its disk`);
    for (const b of member) {
      if (a === b) continue;
      const reach = reachOf(a.state, b.id);
      if (reach !== 'up') t.fail(`${what}: ${a.id} sees ${b.id} ${reach}`);
    }
    const open = [...a.wires.values()].filter((wire) => wire.open).length;
    if (open !== member.length - 1) t.fail(`${what}: ${a.id} has ${open} connections`);
  }
}

t.test('nodes find each other, and dials that cross leave one connection', (t) => {
  for (let seed = 1; seed <= 20; seed++) {
    const network = new SimNetwork({ count: 5, seed, latencyMs: { min: 1, max: 1500 } });
    network.run(20_000);
    agree(t, network, `seed ${seed}`);
  }
  t.end();
});

t.test('the round trip is what the network takes', (t) => {
  const network = new SimNetwork({ count: 3, seed: 5, latencyMs: { min: 30, max: 30 } });
  network.run(10_000);
  for (const { state } of network.nodes.values()) {
    for (const { roundTripUs } of state.peers.values()) {
      t.ok(roundTripUs !== undefined && Math.abs(roundTripUs - 60_000) < 5, `${roundTripUs} us`);
    }
  }
  t.end();
});

t.test('a cut is seen within seconds, and gone soon after it is healed', (t) => {
  const network = new SimNetwork({ count: 6, seed: 3 });
  network.run(5000);
  const all = [...network.nodes.values()];
  network.partition(all.slice(0, 3), all.slice(3));
  network.run(timings.unreachableMs + 1500);
  t.equal(reachOf(network.node(0).state, memberOf(4).id), 'unreachable');
  t.equal(reachOf(network.node(0).state, memberOf(1).id), 'up');
  network.run(60_000);
  t.match(network.node(0).state.peers.get(memberOf(4).id)?.trouble, /does not answer/);
  network.heal();
  network.run(timings.dialBackoffMs.max + 5000);
  agree(t, network, 'healed');
  t.end();
});

t.test('lists end the same whatever is cut, restarted and changed meanwhile', (t) => {
  for (let seed = 1; seed <= 15; seed++) {
    const network = new SimNetwork({ count: 6, seed });
    network.run(3000);
    let joined = 6;
    for (let round = 0; round < 12; round++) {
      const all = [...network.nodes.values()];
      const pick = () => all[Math.floor(network.random() * all.length)] ?? network.node(0);
      const chance = network.random();
      if (chance < 0.3) network.partition([pick(), pick()], [pick(), pick(), pick()]);
      else if (chance < 0.5) network.heal();
      else if (chance < 0.7) {
        const node = pick();
        if (node.up) network.stop(node);
        else network.start(node);
      } else if (chance < 0.85 && network.node(0).up) {
        const fresh = memberOf(joined++);
        network.event(network.node(0), { type: 'changed', members: [fresh] });
        network.add(fresh.id, network.node(0).state.members);
      } else {
        const self = pick();
        const before = self.state.members.find(({ id }) => id === self.id);
        if (self.up && before !== undefined) {
          const zone = `z${round}`;
          const changed = { ...before, zone, revision: before.revision + 1 };
          network.event(self, { type: 'changed', members: [changed] });
        }
      }
      network.run(network.random() * 4000);
    }
    network.heal();
    for (const node of network.nodes.values()) if (!node.up) network.start(node);
    network.run(90_000);
    agree(t, network, `seed ${seed}`);
    t.equal(network.node(0).state.members.length, joined, `seed ${seed}: nobody was lost`);
  }
  t.end();
});

t.test('who was removed stays out, also when it was away, and learns why', (t) => {
  for (let seed = 1; seed <= 10; seed++) {
    const network = new SimNetwork({ count: 4, seed });
    network.run(4000);
    const gone = network.node(2);
    const away = network.node(3);
    network.stop(away);
    if (seed % 2 === 0) network.partition([network.node(0)], [gone]);
    const record = { ...memberOf(2), removed: true };
    network.event(network.node(0), { type: 'changed', members: [record] });
    network.run(10_000);
    network.heal();
    network.start(away);
    network.run(60_000);
    agree(t, network, `seed ${seed}`);
    t.equal(reachOf(network.node(3).state, gone.id), 'removed', `seed ${seed}`);
    t.equal(reachOf(gone.state, gone.id), 'removed', 'it was told');
    t.equal([...gone.wires.values()].filter((wire) => wire.open).length, 0);
    // Its own, older word does not bring it back.
    const again = { ...memberOf(2), revision: 99 };
    network.event(network.node(1), { type: 'changed', members: [again] });
    network.run(5000);
    t.equal(reachOf(network.node(0).state, gone.id), 'removed');
  }
  t.end();
});

t.test('connections are replaced before their certificates end, and closed when they have', (t) => {
  const network = new SimNetwork({ count: 3, seed: 9, certificateLifeMs: 20_000 });
  network.run(4000);
  let lowest = Number.POSITIVE_INFINITY;
  for (let second = 0; second < 120; second++) {
    network.run(1000);
    for (const { state } of network.nodes.values()) {
      for (const { link } of state.peers.values()) {
        lowest = Math.min(lowest, (link?.expiresMs ?? network.nowMs) - network.nowMs);
      }
    }
  }
  t.ok(lowest > 1000, `${lowest} ms were left at the least`);
  t.notOk(network.notes.some((note) => note.includes('expired')));
  // Nobody dials any more, as when the other side's daemon hangs: the end comes in time.
  const hello = { cluster: '0'.repeat(16), id: memberOf(1).id, name: 'n1', protocol: 1 };
  const members = [memberOf(0), memberOf(1)];
  let state = newMembership(memberOf(0).id, members, facts, 0);
  const linked = { type: 'linked', nowMs: 0, link: 1, dialled: 'there', expiresMs: 900 } as const;
  state = step(state, { ...linked, hello: { ...hello, version: '', run: '' } }).state;
  const last = step(state, { type: 'tick', nowMs: 901 });
  t.match(last.effects, [{ type: 'close', link: 1, refusal: { code: 'certificate' } }]);
  t.end();
});

t.test('100 nodes cost each of them little', (t) => {
  const network = new SimNetwork({ count: 100, seed: 1, framed: true });
  network.run(5000);
  const before = cpuUsage();
  const messages = network.messages;
  const seconds = 8;
  network.run(seconds * 1000);
  const { user, system } = cpuUsage(before);
  const share = (user + system) / 1e6 / seconds / 100;
  const rate = (network.messages - messages) / seconds / 100;
  t.comment(`${(share * 100).toFixed(3)} % of a core a node, ${rate.toFixed(0)} messages a second`);
  t.ok(share < 0.02, 'the network of the test included');
  agree(t, network, '100 nodes');
  t.end();
});
