/** Replicas that hold a part of the memory: eviction, promotion with cold pages, refill. */
import { readFile, readdir } from 'node:fs/promises';
import path from 'node:path';
import t from 'tap';
import type { GroupStatus, InspectedProcess } from '../../src/api/schema.js';
import { onStage, startVictim } from '../support/on-stage.js';
import { whyNoEngine } from '../support/repository.js';
import type { Stage } from '../support/stage.js';
import { waitFor } from '../support/wait-for.js';

const skip = whyNoEngine() ?? false;
const sizeMiB = 96;
const mebibyte = 1 << 20;
const group = 'main';

// The stage is on tmpfs, which no page store may be.
process.env['REPLPAGE_STORE_IN_MEMORY'] = 'yes';

async function isCold(stage: Stage, share: number): Promise<GroupStatus> {
  await waitFor(
    async () => ((await stage.group(group))?.memory.coldBytes ?? 0) >= share * sizeMiB * mebibyte,
    90_000,
    async () => `little gets cold: ${JSON.stringify(await stage.group(group))}`,
  );
  return (await stage.group(group)) as GroupStatus;
}

/** As soon as what was promoted runs, with its cold pages in the store still. */
async function whenItRuns(stage: Stage, before: GroupStatus): Promise<GroupStatus> {
  let now: GroupStatus | undefined;
  await waitFor(
    async () => {
      now = await stage.group(group);
      return now?.promotion !== null && now?.hostPid !== before.hostPid;
    },
    30_000,
    () => `it is not promoted: ${JSON.stringify(now)}`,
  );
  return now as GroupStatus;
}

const paged = ['--ram', 'hot', '--cold-after', '1s'];

t.test('a replica holds what is hot, and runs on with the rest', { skip }, (t) =>
  onStage(t, 'paging', async (stage) => {
    await stage.startDaemon('--access-tracker', 'page-walk');
    const victim = await startVictim(stage, 'cold_memory', String(sizeMiB));
    await stage.protect(victim.pid, group, ...paged);
    for (let done = 1; done <= 2; done++) {
      const before = await isCold(stage, 0.6);
      t.ok(before.memory.residentBytes < 0.5 * sizeMiB * mebibyte, 'little of it is in RAM');
      t.equal(before.paging?.storeState, 'ok');
      process.kill(before.hostPid, 'SIGKILL');
      const promoted = await whenItRuns(stage, before);
      t.equal(promoted.promotion?.exact, true);
      process.kill(promoted.hostPid, 'SIGUSR1');
      await victim.waitUntil(
        ({ counters }) => counters[0] === done,
        60_000,
        ({ text }) => `it does not come to an end with its cold memory: ${text}`,
      );
      await stage.waitForState(group, ['protected']);
    }
    const last = (await stage.group(group)) as GroupStatus;
    await stage.command('unprotect', group);
    process.kill(last.hostPid, 'SIGKILL');
    const groups = path.join(stage.runtimeDir, 'state', 'store');
    await waitFor(
      async () => (await filesIn(groups)).every((name) => !name.includes('segment')),
      10_000,
      async () => `the store still has ${(await filesIn(groups)).join(' ')}`,
    );
  }),
);

t.test('a crash is answered by an epoch with cold pages', { skip }, (t) =>
  onStage(t, 'paging', async (stage) => {
    await stage.startDaemon();
    const victim = await startVictim(stage, 'cold_memory', String(sizeMiB));
    await stage.protect(victim.pid, group, ...paged, '--files', 'keep');
    const before = await isCold(stage, 0.6);
    process.kill(before.hostPid, 'SIGSEGV');
    const promoted = await whenItRuns(stage, before);
    t.equal(promoted.promotion?.exact, false);
    process.kill(promoted.hostPid, 'SIGUSR1');
    await victim.waitUntil(
      ({ counters }) => counters[0] === 1,
      60_000,
      ({ text }) => `it does not come to an end with its cold memory: ${text}`,
    );
  }),
);

t.test('threads of a stopped process have their own data, cold as it is', { skip }, (t) =>
  onStage(t, 'paging', async (stage) => {
    await stage.startDaemon();
    const victim = await startVictim(stage, 'cold_memory', String(sizeMiB));
    await stage.protect(victim.pid, group, ...paged);
    process.kill(victim.pid, 'SIGSTOP');
    const before = await isCold(stage, 0.95);
    process.kill(before.hostPid, 'SIGKILL');
    const promoted = await whenItRuns(stage, before);
    const { counters: stopped } = await victim.state();
    process.kill(promoted.hostPid, 'SIGCONT');
    await victim.waitUntil(
      ({ counters }) => [1, 2, 3, 4].every((i) => (counters[i] ?? 0) > (stopped[i] ?? 0) + 2),
      60_000,
      ({ text }) => `its threads do not go on: ${text}`,
    );
  }),
);

t.test('a share of the memory is kept in RAM', { skip }, (t) =>
  onStage(t, 'paging', async (stage) => {
    await stage.startDaemon('--access-tracker', 'write-recency');
    const victim = await startVictim(stage, 'cold_memory', String(sizeMiB));
    await stage.protect(victim.pid, group, '--ram', '40%', '--cold-after', '1s');
    const settled = await isCold(stage, 0.5);
    t.equal(settled.paging?.accessTracker, 'write-recency');
    t.equal(settled.ram, '40%');
    await victim.waitForRounds(20);
    const { processes } = await stage.json<{ processes: readonly InspectedProcess[] }>(
      ...['inspect', group, '--svg', stage.path('map.svg')],
    );
    const cells = processes.flatMap(({ mappings }) => mappings.flatMap((one) => one.cells));
    const cold = cells.reduce((sum, cell) => sum + cell.cold, 0);
    t.ok(cold * 4096 >= 0.5 * sizeMiB * mebibyte, 'the map shows what is cold');
    t.match(await readFile(stage.path('map.svg'), 'utf8'), /^<svg/);
    const shown = await stage.command('inspect', group);
    t.match(shown.stdout, /mostly '#' hot/);
    t.equal((await stage.command('inspect', 'nobody')).status, 66, 'no such group');
  }),
);

t.test('a store that cannot be used is refused by name', { skip }, (t) =>
  onStage(t, 'paging', async (stage) => {
    await stage.startDaemon();
    const victim = await startVictim(stage, 'cold_memory', '16');
    for (const [store, why] of [
      ['/nowhere/store', /no such|not there|does not exist|No such/i],
      ['/proc', /proc/],
    ] as const) {
      const args = ['protect', String(victim.pid), '--ram', 'hot', '--store', store, '--json'];
      const { status, stdout, stderr } = await stage.command(...args);
      t.equal(status, 65, `${store} is refused`);
      t.match(stdout + stderr, /ERR_STORE/);
      t.match(stdout + stderr, why);
    }
    await victim.waitForRounds(20);
    const { status } = await stage.command('protect', String(victim.pid), '--ram', '200%');
    t.equal(status, 64, 'a share beyond all is refused');
  }),
);

async function filesIn(folder: string): Promise<string[]> {
  try {
    return await readdir(folder, { recursive: true });
  } catch {
    return [];
  }
}
