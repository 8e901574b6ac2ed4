/** Real daemons, each in a network namespace, and what a user types on them. */
import { cpSync, statSync } from 'node:fs';
import path from 'node:path';
import t, { type Test } from 'tap';
import { waitFor } from '../support/wait-for.js';
import { NamespaceNetwork, whyNoNamespaces, type NodeInNamespace } from './namespaces.js';

const skip = whyNoNamespaces() ?? false;

async function network(t: Test, ...names: string[]): Promise<readonly NodeInNamespace[]> {
  const made = new NamespaceNetwork();
  t.teardown(() => made.end());
  const nodes = names.map((name) => made.node(name));
  await Promise.all(nodes.map((node) => node.startDaemon()));
  return nodes;
}

/** As the recipe in the README has it. */
async function clusterOf(t: Test, a: NodeInNamespace, ...others: NodeInNamespace[]): Promise<void> {
  const made = await a.type('init', '--name', a.name);
  t.equal(made.status, 0, made.stderr);
  t.match(made.stdout, new RegExp(`node ${a.name} at ${a.host}:7420`));
  t.match(made.stdout, /recovery key.*\n\n {2}(\w{4}-){13}\w{4}\n/);
  for (const node of others) {
    const token = await a.type('token');
    const [, join = ''] = /^replpage join (\S+)$/m.exec(token.stdout) ?? [];
    t.match(join, new RegExp(`^rpt1\\w+@${a.host}:7420$`), token.stderr);
    const joined = await node.type('join', join, '--name', node.name, '--zone', `z${node.name}`);
    t.equal(joined.status, 0, joined.stderr);
    t.match(joined.stdout, new RegExp(`node ${node.name} at ${node.host}:7420`));
  }
}

t.test('three nodes: join, restart all, cut, remove', { skip }, async (t) => {
  const nodes = await network(t, 'a', 'b', 'c');
  const [a, b, c] = nodes as [NodeInNamespace, NodeInNamespace, NodeInNamespace];
  const alone = await b.type('nodes');
  t.equal(alone.status, 1);
  t.match(alone.stderr, /in no cluster/);
  await clusterOf(t, a, b, c);
  for (const node of nodes)
    for (const other of nodes) {
      await node.sees(other.name, node === other ? 'self' : 'up');
    }
  await waitFor(
    async () => (await b.nodes()).nodes.find(({ name }) => name === 'a')?.roundTripUs !== null,
    60_000,
    'no round trip to a is measured',
  );
  const table = await b.type('nodes');
  t.match(table.stdout, /^NODE +ADDRESS +ZONE +STATE +ROUND TRIP +FOR REPLICAS +GROUPS/);
  t.match(table.stdout, /^a \(CA\) +10\.77\.0\.1:7420 +- +up +[\d.]+ (us|ms) +[\d.]+ GiB +0 /m);
  const state = path.join(b.runtimeDir, 'state/cluster.json');
  t.equal(statSync(state).mode & 0o777, 0o600);
  t.equal(statSync(path.dirname(state)).mode & 0o777, 0o700);

  const before = (await a.nodes()).nodes.map(({ id, address, zone }) => [id, address, zone]);
  await Promise.all(nodes.map((node) => node.endDaemon('SIGKILL')));
  await Promise.all(nodes.map((node) => node.startDaemon()));
  for (const node of nodes)
    for (const other of nodes) {
      await node.sees(other.name, node === other ? 'self' : 'up');
    }
  for (const node of nodes) {
    const after = (await node.nodes()).nodes.map(({ id, address, zone }) => [id, address, zone]);
    t.same(after, before, `the list of ${node.name} after a restart of all`);
  }

  b.plug('down');
  const lost = await a.sees('b', 'unreachable', 20_000);
  t.type(lost.name, 'string');
  t.equal((await c.sees('a', 'up')).state, 'up', 'the others do not mind');
  // Removed while it is away: it stays out when it is back.
  b.plug('up');
  await a.sees('b', 'up');
  const copy = path.join(b.runtimeDir, 'copy.json');
  cpSync(state, copy);
  b.plug('down');
  const removed = await a.type('nodes', 'remove', 'b');
  t.equal(removed.status, 0, removed.stderr);
  b.plug('up');
  for (const node of [a, c]) {
    const { nodes: left } = await node.nodes();
    t.notOk(left.some(({ name }) => name === 'b'));
  }
  await b.endDaemon('SIGTERM');
  cpSync(copy, state);
  await b.startDaemon();
  await waitFor(
    async () => (await b.nodes()).nodes.some(({ reason }) => reason?.includes('was removed')),
    30_000,
    () => `nobody told b: ${b.log}`,
  );
});
