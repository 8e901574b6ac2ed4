/** A daemon and a redis on a node, as a user of that machine runs them. */
import type { GroupStatus, StatusReport } from '../../src/api/schema.js';
import { until, type VmNode } from './bed/node.js';
import { patiently } from './bed/patience.js';

export const limitMs = patiently(120_000);
/** Limits only: an emulated machine is slow, and stops nothing within the usual ones. */
const slowly = '--freeze-deadline 1s';
const program = '/opt/replpage/dist/cli/main.js';

export const replpage = (node: VmNode, words: string): Promise<string> =>
  node.sh(`REPLPAGE_RUNTIME_DIR=/root/rp ${program} ${words}`, { limitMs });

export async function startDaemon(node: VmNode): Promise<void> {
  const command = `${program} daemon --runtime-dir /root/rp ${slowly}`;
  await node.sh(`setsid ${command} > /root/daemon.log 2>&1 < /dev/null &`);
  const answers = async (): Promise<boolean> =>
    (await node.run(`REPLPAGE_RUNTIME_DIR=/root/rp ${program} status`)).status === 0;
  await until(answers, limitMs, `${node.name}: the daemon does not answer`);
}

export async function startRedis(node: VmNode, options = ''): Promise<void> {
  await node.sh(`redis-server --port 6379 --save '' --daemonize yes --dir /tmp ${options}`);
  await answers(node);
}

export const ask = (node: VmNode, words: string): Promise<string> =>
  node.sh(`redis-cli ${words}`, { limitMs });

export async function answers(node: VmNode): Promise<void> {
  const pong = async (): Promise<boolean> =>
    (await node.run('redis-cli PING')).stdout.trim() === 'PONG';
  await until(pong, limitMs, `${node.name}: redis does not run`);
}

export const status = async (node: VmNode): Promise<StatusReport> =>
  JSON.parse(await replpage(node, 'status --json')) as StatusReport;

/** The group called db. */
export async function group(node: VmNode): Promise<GroupStatus | undefined> {
  return (await status(node)).groups.find(({ name }) => name === 'db') as GroupStatus | undefined;
}

export async function isProtected(node: VmNode): Promise<void> {
  const there = async (): Promise<boolean> => (await group(node))?.state === 'protected';
  await until(there, limitMs, `${node.name}: it is not protected`);
}
