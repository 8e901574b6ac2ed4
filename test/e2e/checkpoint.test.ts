/** Pages and state in the store by order: evict, the key, checkpoint and restore. */
import { existsSync } from 'node:fs';
import { mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import path from 'node:path';
import t from 'tap';
import type {
  CheckpointReport,
  EvictReport,
  GroupStatus,
  RemovalReport,
  RestoreReport,
} from '../../src/api/schema.js';
import { onStage, startVictim } from '../support/on-stage.js';
import { descendantsOf, sendSignal } from '../support/processes.js';
import { whyNoEngine } from '../support/repository.js';
import { startRedis } from '../support/servers.js';
import type { Stage } from '../support/stage.js';
import type { Victim } from '../support/victim.js';
import { letRun, waitFor } from '../support/wait-for.js';

const skip = whyNoEngine() ?? false;
const mebibyte = 1 << 20;
const group = 'main';

// The stage is on tmpfs, which no page store may be.
process.env['REPLPAGE_STORE_IN_MEMORY'] = 'yes';

t.test('a replica is made cold by order, and its key exported', { skip }, (t) =>
  onStage(t, 'evict', async (stage) => {
    await stage.startDaemon();
    const victim = await startVictim(stage, 'cold_memory', '64');
    const early = await stage.command('key', 'export', stage.path('early'));
    t.equal(early.status, 75, 'there is no key before anything is stored');
    await stage.protect(victim.pid, group, '--ram', 'hot', '--cold-after', '1h');
    await victim.waitForRounds(5);
    const report = await stage.json<EvictReport>('evict', group);
    t.ok(report.evictedBytes > 30 * mebibyte, `${report.evictedBytes} bytes left`);
    t.ok(report.group.memory.coldBytes > 30 * mebibyte);
    const file = stage.path('key');
    t.equal((await stage.command('key', 'export', file)).status, 0);
    t.match(await readFile(file, 'utf8'), /^[0-9a-f]{64}-[0-9a-f]{8}\n$/);
    t.equal((await stat(file)).mode & 0o777, 0o600);
    t.equal((await stage.command('key', 'export', file)).status, 64, 'never overwritten');
    await stage.command('unprotect', group);
    await stage.protect(victim.pid, group, '--ram', 'all');
    const refused = await stage.command('evict', group);
    t.equal(refused.status, 64);
    t.match(refused.stderr, /--ram all/);
  }),
);

/**
 * The process tree, its replica, the keeper, the pager and the daemon: all gone at once. Stopped
 * first, since nobody of the tree may live on for a moment and report that the others are gone.
 */
async function loseEverything(stage: Stage, hostPid: number): Promise<void> {
  await stage.killDaemon();
  const tree = [hostPid, ...(await descendantsOf(hostPid))];
  for (const signal of ['SIGSTOP', 'SIGKILL'] as const) {
    for (const pid of tree) sendSignal(pid, signal);
  }
  await waitFor(
    () => !existsSync(`/proc/${hostPid}/root`),
    10_000,
    () => `process ${hostPid} does not end`,
  );
}

async function isRestored(stage: Stage, victim: Victim, hostPid: number): Promise<void> {
  process.kill(hostPid, 'SIGUSR1');
  await victim.waitUntil(
    ({ counters }) => counters[0] === 1,
    60_000,
    ({ text }) => `it does not come to an end with its restored memory: ${text}`,
  );
  await stage.waitForState(group, ['protected'], 60_000);
}

const storeOf = (stage: Stage): string => stage.path('run', 'state', 'store');

for (const ram of ['hot', 'all']) {
  t.test(`what was lost with everything is restored, --ram ${ram}`, { skip }, (t) =>
    onStage(t, 'checkpoint', async (stage) => {
      await stage.startDaemon();
      const victim = await startVictim(stage, 'cold_memory', '48');
      await stage.protect(victim.pid, group, '--ram', ram, '--cold-after', '1s');
      await victim.waitForRounds(20);
      if (ram === 'hot') await stage.json<EvictReport>('evict', group);
      const taken = await stage.json<CheckpointReport>('checkpoint', group);
      t.ok(taken.writtenBytes + taken.coldBytes > 40 * mebibyte, 'all of it is in the store');
      t.equal(taken.coldBytes > 20 * mebibyte, ram === 'hot', 'what was cold is shared');
      t.equal(taken.path, path.join(storeOf(stage), group));
      const here = await stage.refusal('restore', taken.path);
      t.equal(here.code, 'ERR_GROUP_EXISTS', 'never two running');
      await loseEverything(stage, victim.pid);
      await stage.startDaemon();
      const args = ['restore', taken.path, '--files', 'keep'];
      const restored = await stage.json<RestoreReport>(...args);
      t.equal(restored.id, taken.id);
      t.equal(restored.epoch, taken.epoch);
      t.equal(restored.group.pid, victim.pid, 'with the pid that it knows');
      await isRestored(stage, victim, restored.group.hostPid);
      const again = await stage.json<CheckpointReport>('checkpoint', group);
      t.not(again.id, taken.id, 'what was restored is checkpointed as another');
      const last = (await stage.group(group)) as GroupStatus;
      await stage.command('unprotect', group);
      process.kill(last.hostPid, 'SIGKILL');
    }),
  );
}

t.test('processes that share memory are restored', { skip }, (t) =>
  onStage(t, 'checkpoint-family', async (stage) => {
    await stage.startDaemon();
    const victim = await startVictim(stage, 'family');
    await stage.protect(victim.pid, group);
    await victim.waitForRounds(20);
    const { path: taken } = await stage.json<CheckpointReport>('checkpoint', group);
    await loseEverything(stage, victim.pid);
    await stage.startDaemon();
    await stage.json<RestoreReport>('restore', taken, '--files', 'keep');
    const { hostPid } = await stage.waitForState(group, ['protected'], 60_000);
    await victim.waitForRounds(20);
    await stage.command('unprotect', group);
    process.kill(hostPid, 'SIGKILL');
  }),
);

t.test('an interrupted checkpoint leaves the earlier one', { skip }, (t) =>
  onStage(t, 'checkpoint', async (stage) => {
    await stage.startDaemon();
    const victim = await startVictim(stage, 'cold_memory', '32');
    await stage.protect(victim.pid, group, '--ram', 'hot', '--cold-after', '1h');
    const first = await stage.json<CheckpointReport>('checkpoint', group);
    const kept = await stage.json<CheckpointReport>('checkpoint', group, '--keep');
    const folders = async (): Promise<string[]> =>
      (await readdir(first.path)).filter((name) => name.startsWith('checkpoint-')).sort();
    const both = [`checkpoint-${first.id}`, `checkpoint-${kept.id}`].sort();
    t.same(await folders(), both, 'both are there');
    await waitFor(
      async () => ((await stage.group(group))?.paging?.pagerPid ?? 0) > 0,
      10_000,
      () => 'it has no pager',
    );
    const pager = (await stage.group(group))?.paging?.pagerPid ?? 0;
    process.kill(pager, 'SIGSTOP');
    const asked = stage.refusal('checkpoint', group);
    await new Promise((resolve) => setTimeout(resolve, 3000));
    process.kill(pager, 'SIGKILL');
    t.equal((await asked).code, 'ERR_STORE');
    t.same(await folders(), both, 'nothing was lost');
    t.equal((await stage.group(group))?.state, 'protected', 'and the replica is kept');
    await loseEverything(stage, victim.pid);
    await stage.startDaemon();
    await flipBit(path.join(first.path, `checkpoint-${kept.id}`, 'manifest'), 300);
    const damaged = await stage.refusal('restore', first.path, '--files', 'keep');
    t.equal(damaged.code, 'ERR_STORE');
    t.match(damaged.message, /manifest at \d+: .*damaged/);
    await rename(stage.path('run', 'state', 'store.key'), stage.path('store.key'));
    const args = ['restore', first.path, '--id', first.id, '--files', 'keep'];
    t.match((await stage.refusal(...args)).message, /no key/);
    await rename(stage.path('store.key'), stage.path('run', 'state', 'store.key'));
    const restored = await stage.json<RestoreReport>(...args);
    t.equal(restored.id, first.id, 'the earlier one is whole');
    await isRestored(stage, victim, restored.group.hostPid);
    const removed = await stage.json<RemovalReport>('checkpoint', '--remove', first.path);
    t.same(removed.ids.toSorted(), [first.id, kept.id].sort(), 'also what is damaged');
    t.same(await folders(), []);
    const none = await stage.refusal('checkpoint', '--remove', group);
    t.equal(none.code, 'ERR_STORE');
    t.match(none.message, /there is no checkpoint in/);
    process.kill(restored.group.hostPid, 'SIGTERM');
  }),
);

async function stopPager(stage: Stage): Promise<void> {
  let pager = 0;
  await waitFor(
    async () => {
      pager = (await stage.group(group))?.paging?.pagerPid ?? 0;
      return pager > 0 && existsSync(`/proc/${pager}/root`); // not of the generation before
    },
    10_000,
    () => 'it has no pager',
  );
  process.kill(pager, 'SIGSTOP');
}

t.test('what is more urgent does not wait for a checkpoint', { skip }, (t) =>
  onStage(t, 'checkpoint', async (stage) => {
    await stage.startDaemon();
    const victim = await startVictim(stage, 'cold_memory', '32');
    await stage.protect(victim.pid, group, '--ram', 'hot', '--cold-after', '1h');
    for (const [doing, why] of [
      ['promote', /promoted meanwhile/],
      ['unprotect', /let go meanwhile/],
    ] as const) {
      await stopPager(stage);
      const asked = stage.refusal('checkpoint', group);
      await letRun(3000);
      const beganMs = Date.now();
      const { hostPid, generation } = await stage.json<GroupStatus>(doing, group);
      t.ok(Date.now() - beganMs < 30_000, `${doing} took ${Date.now() - beganMs} ms`);
      const { code, message } = await asked;
      t.equal(code, 'ERR_STATE');
      t.match(message, why);
      if (doing === 'promote') {
        await stage.waitForState(group, ['protected'], 60_000);
        t.ok(generation > 0);
      } else process.kill(hostPid, 'SIGKILL');
    }
  }),
);

async function flipBit(file: string, at: number): Promise<void> {
  const bytes = await readFile(file);
  bytes[at] = (bytes[at] ?? 0) ^ 1;
  await writeFile(file, bytes);
}

t.test('redis comes back from another store with its key', { skip }, (t) =>
  onStage(t, 'checkpoint', async (stage) => {
    await stage.startDaemon();
    const store = stage.path('shared');
    await mkdir(store);
    const server = await startRedis(stage);
    const cli = (...args: string[]) => stage.run('redis-cli', ['-p', String(server.port), ...args]);
    await cli('DEBUG', 'POPULATE', '20000', 'key', '1000');
    const digest = (await cli('DEBUG', 'DIGEST')).stdout;
    await stage.protect(server.pid, group, '--ram', '30%', '--cold-after', '1s', '--store', store);
    const taken = await stage.json<CheckpointReport>('checkpoint', group);
    await stage.command('key', 'export', stage.path('key'));
    await cli('SET', 'later', 'lost');
    await loseEverything(stage, server.pid);
    await rm(stage.path('run'), { recursive: true, force: true });
    await mkdir(stage.path('run'));
    await stage.startDaemon();
    t.match((await stage.refusal('restore', taken.path)).advice ?? '', /--key/);
    const restored = await stage.json<RestoreReport>(
      ...['restore', taken.path, '--key', stage.path('key')],
    );
    t.equal((await cli('DEBUG', 'DIGEST')).stdout, digest, 'every key is as it was');
    t.equal((await cli('EXISTS', 'later')).stdout.trim(), '0', 'and none later');
    t.equal((await cli('SET', 'now', 'on')).stdout.trim(), 'OK', 'it goes on');
    await stage.waitForState(group, ['protected'], 60_000);
    process.kill(((await stage.group(group)) as GroupStatus).hostPid, 'SIGKILL');
    await stage.waitForPromotion(group, restored.group.generation + 1);
    t.equal((await cli('EXISTS', 'now')).stdout.trim(), '1', 'and is protected again');
  }),
);
