/** The README's two nodes, on two machines: killed, moved, and the power cut. */
import t, { type Test } from 'tap';
import type { Bed } from './bed/bed.js';
import { until, type VmNode } from './bed/node.js';
import { begin, note } from './findings.js';
import { kernels, onBed, short } from './on-bed.js';
import {
  answers,
  ask,
  group,
  isProtected,
  limitMs,
  replpage,
  startDaemon,
  startRedis,
  status,
} from './protected-redis.js';

async function join(one: VmNode, two: VmNode): Promise<void> {
  await Promise.all([startDaemon(one), startDaemon(two)]);
  await replpage(one, `init --name n1 --listen ${one.address}:7420`);
  const line = /^replpage (join \S+)$/m.exec(await replpage(one, 'token'))?.[1];
  await replpage(two, `${line} --name n2 --listen ${two.address}:7420`);
}

/** What was written before is in the replica then. */
async function committed(primary: VmNode, replica: VmNode): Promise<void> {
  const epoch = (await group(primary))?.epoch ?? 0;
  const later = async (): Promise<boolean> =>
    ((await status(replica)).standbys ?? []).some((standby) => standby.epoch > epoch + 1);
  await until(later, limitMs, 'no more epochs are committed');
}

async function outlives(t: Test, bed: Bed, kernel: string): Promise<void> {
  const [one, two] = [bed.node(1), bed.node(2)];
  const ways = ['Killed: runs on the other node', 'Moved back', 'Power cut: promoted by hand'];
  begin(kernel, 'Two nodes', ...ways);
  const [killed = '', moved = '', cut = ''] = ways;
  await join(one, two);
  await startRedis(one);
  await ask(one, 'SET first kept');
  await replpage(one, 'protect $(pidof redis-server) --name db --to n2 --max-pause 5s');

  await ask(one, 'SET second kept');
  await one.sh('kill -9 $(pidof redis-server)');
  await answers(two);
  t.same(await ask(two, 'MGET first second'), 'kept\nkept', 'killed: nothing is lost');
  note(kernel, 'Two nodes', killed, 'nothing is lost');

  await isProtected(two);
  await replpage(two, 'move db --to n1');
  await answers(one);
  t.same(await ask(one, 'MGET first second'), 'kept\nkept', 'moved: nothing is lost');
  note(kernel, 'Two nodes', moved, 'nothing is lost');

  await isProtected(one);
  await ask(one, 'SET third kept');
  await committed(one, two);
  await one.crash();
  const alone = async (): Promise<boolean> =>
    ((await status(two)).standbys ?? []).some(({ state }) => state === 'cut off');
  await until(alone, limitMs, 'nobody notices that the power is gone');
  await replpage(two, 'promote db');
  await answers(two);
  t.same(
    await ask(two, 'MGET first second third'),
    'kept\nkept\nkept',
    'what was committed is there',
  );
  note(kernel, 'Two nodes', cut, 'what was committed is there');
}

for (const kernel of kernels) {
  t.test(`${kernel}: redis outlives its node`, { skip: short && 'short' }, (t) =>
    onBed(t, { kernel, nodes: 2, memoryMiB: 1024 }, (bed) => outlives(t, bed, kernel)),
  );
}
