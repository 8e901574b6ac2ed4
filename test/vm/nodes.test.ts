/** The bed itself: nodes boot, answer, crash, hang, lose packets and come back. */
import { setTimeout as pause } from 'node:timers/promises';
import t, { type Test } from 'tap';
import type { Bed } from './bed/bed.js';
import { until, type VmNode } from './bed/node.js';
import { note } from './findings.js';
import { kernels, onBed, short } from './on-bed.js';
import { patiently } from './bed/patience.js';

const hangMs = 6000;
const healMs = patiently(60_000);

async function hears(from: VmNode, to: VmNode): Promise<boolean> {
  const { status } = await from.run(`ping -c 1 -W 2 ${to.name}`);
  return status === 0;
}

/** Packets that a node's card has taken in. */
async function received(node: VmNode): Promise<number> {
  return Number(await node.sh('cat /sys/class/net/net0/statistics/rx_packets'));
}

for (const kernel of kernels) {
  t.test(`${kernel}: a node boots and answers`, (t) =>
    onBed(t, { kernel, nodes: 1, cold: true }, async (bed) => {
      const node = bed.node(1);
      t.equal(await node.sh('uname -r'), bed.kernel);
      t.ok(bed.kernel.startsWith(`${kernel}.`), bed.kernel);
      t.same(await node.run('echo out; echo err >&2; exit 7'), {
        status: 7,
        stdout: 'out\n',
        stderr: 'err\n',
      });
      t.equal((await node.run('kill -9 $$')).status, 137, 'a death by signal shows');
      const lines = await node.sh('seq 1 20000');
      t.equal(lines.split('\n').length, 20_000, 'long output arrives whole');
      await Promise.all([
        node.sh('until test -e /tmp/second; do sleep 0.1; done'),
        node.sh('touch /tmp/second'),
      ]);
      t.pass('commands run beside each other');
      await t.rejects(node.run('sleep 1000', { limitMs: 2000 }), { message: /no end after/ });
      t.equal(await node.sh('node -p 1+1'), '2', 'Node.js runs');
      t.match(await node.sh('/opt/replpage/dist/cli/main.js --version'), /^\d+\.\d+/);
    }),
  );
}

for (const kernel of kernels) {
  t.test(
    `${kernel}: three nodes: a crash, hangs, and partitions`,
    { skip: short && 'short' },
    (t) => onBed(t, { kernel, nodes: 3 }, (bed) => disturbed(t, bed)),
  );
}

/** Until all three answer, with all images there; told and not judged. */
t.test('how long three nodes take', { skip: short && 'short' }, async (t) => {
  const kernel = kernels.at(-1) ?? '';
  // The saved state is made here, where there is none.
  await onBed(t, { kernel, nodes: 3 }, () => Promise.resolve());
  for (const [how, cold] of [
    ['booted', true],
    ['from a saved state', false],
  ] as const) {
    const began = performance.now();
    await onBed(t, { kernel, nodes: 3, cold }, (bed) => {
      const seconds = ((performance.now() - began) / 1000).toFixed(1);
      t.equal(bed.nodes.length, 3, `three nodes answer after ${seconds} s, ${how}`);
      note(kernel, 'Nodes', `Three nodes answer, ${how}`, `after ${seconds} s`);
      return Promise.resolve();
    });
  }
});

async function disturbed(t: Test, bed: Bed): Promise<void> {
  const [one, two, three] = [bed.node(1), bed.node(2), bed.node(3)];
  const heals = (from: VmNode, to: VmNode): Promise<void> =>
    until(() => hears(from, to), healMs, `${from.name} does not hear ${to.name} again`);
  for (const node of [two, three]) t.ok(await hears(one, node), `n1 hears ${node.name}`);

  await two.partition();
  t.notOk(await hears(one, two), 'partitioned');
  t.ok(await hears(one, three), 'the others hear each other');
  t.equal(await two.sh('cat /sys/class/net/net0/carrier'), '1', 'nothing shows on the card');
  await two.heal();
  await heals(one, two);

  for (const direction of ['out', 'in'] as const) {
    await two.partition(direction);
    const before = await received(two);
    t.notOk(await hears(one, two), `one way (${direction})`);
    const after = await received(two);
    if (direction === 'out') t.ok(after > before, 'it still receives');
    else t.equal(after, before, 'it receives nothing');
    await two.heal();
    await heals(one, two);
  }

  await two.unplug();
  t.equal(await two.sh('cat /sys/class/net/net0/carrier'), '0', 'unplugged: the card shows it');
  await two.heal();
  await heals(one, two);

  const clock = async (): Promise<number> => Number(await two.sh("cut -d' ' -f1 /proc/uptime"));
  for (const clocks of ['stopped', 'running'] as const) {
    const asked = performance.now();
    const before = await clock();
    const answered = performance.now();
    await two.hang(clocks);
    const hangs = performance.now();
    await pause(hangMs);
    t.notOk(await hears(one, two), `it hangs, clocks ${clocks}`);
    const healed = performance.now();
    await two.heal();
    const guestMs = ((await clock()) - before) * 1000;
    // How long the questions took is not the node's business.
    const atMost = performance.now() - asked - (healed - hangs);
    const atLeast = healed - answered;
    const words = `${guestMs} ms passed for it`;
    if (clocks === 'stopped') t.ok(guestMs < atMost + 1000, `${words}, at most ${atMost}`);
    else t.ok(guestMs > atLeast - 1000, `${words}, at least ${atLeast}`);
    await heals(one, two);
  }

  two.release();
  await two.hang('stopped');
  await t.rejects(two.ready(3000), {
    message: /n2: it does not answer in 3 s.*\nits console ends/s,
  });
  await two.heal();
  await two.ready();

  await three.sh('echo kept > /root/memory; echo kept > /dev/data; sync');
  await three.crash();
  t.notOk(await hears(one, three), 'crashed');
  await bed.start(3);
  await heals(one, three);
  t.equal((await three.run('cat /root/memory')).status, 1, 'its memory is gone');
  t.equal(await three.sh('head -c 4 /dev/data'), 'kept', 'its disk is there');
}
