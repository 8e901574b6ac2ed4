/** Cold pages on the kernel's own NFS: a kill, and the server's power cut in the middle of the refill. */
import t, { type Test } from 'tap';
import type { Bed } from './bed/bed.js';
import { until } from './bed/node.js';
import { patiently } from './bed/patience.js';
import { begin, note } from './findings.js';
import { mountNfs, serveNfs } from './fixtures/nfs.js';
import { kernels, onBed, short } from './on-bed.js';
import {
  ask,
  group,
  isProtected,
  limitMs,
  replpage,
  startDaemon,
  startRedis,
} from './protected-redis.js';

const coldMs = patiently(300_000);
const backMs = patiently(300_000);
const keys = 2500;
/** Of one value: 160 MiB in all, which take the emulated server some seconds. */
const valueBytes = 65_536;

async function pagesOverNfs(t: Test, bed: Bed, kernel: string): Promise<void> {
  const [server, node] = [bed.node(1), bed.node(2)];
  const what = 'Killed with cold pages on NFS 4.2, server crashed in the refill';
  begin(kernel, 'NFS', what);
  const store = await mountNfs(node, await serveNfs(server), '4.2');
  await startDaemon(node);
  await startRedis(node, '--enable-debug-command yes');
  const fill = `for i = 1, ${keys} do redis.call('SET', 'key' .. i, string.rep(tostring(i), ${valueBytes} / 4):sub(1, ${valueBytes})) end`;
  await ask(node, `EVAL "${fill}" 0`);
  const before = await ask(node, 'DEBUG DIGEST');
  const paged = `--ram hot --cold-after 1s --store ${store}`;
  await replpage(node, `protect $(pidof redis-server) --name db --max-pause 5s ${paged}`);
  const isCold = async (): Promise<boolean> => {
    const memory = (await group(node))?.memory;
    return memory !== undefined && memory.coldBytes > memory.primaryBytes / 2;
  };
  await until(isCold, coldMs, 'little of it becomes cold');
  const pid = await node.sh('pidof redis-server');

  await node.sh(`kill -9 ${pid}`);
  await server.crash();
  const left = await group(node);
  t.equal(left?.running, true, 'it runs, whatever it waits for');
  const coldBytes = left?.memory.coldBytes ?? 0;
  t.ok(coldBytes > 0, `${coldBytes} bytes are cold when the server goes`);

  await bed.start(1);
  await serveNfs(server);
  await until(
    async () => (await node.run('redis-cli PING', { limitMs })).stdout.trim() === 'PONG',
    backMs,
    'redis does not answer with its server back',
  );
  t.equal(await ask(node, 'DEBUG DIGEST'), before, 'every byte of every value is there');
  await isProtected(node);
  note(
    kernel,
    'NFS',
    what,
    `nothing is lost; ${(coldBytes / 2 ** 20).toFixed(0)} MiB were cold then`,
  );
}

for (const kernel of kernels) {
  t.test(`${kernel}: pages over NFS`, { skip: short && 'short' }, (t) =>
    onBed(t, { kernel, nodes: 2, memoryMiB: 1024 }, (bed) => pagesOverNfs(t, bed, kernel)),
  );
}
