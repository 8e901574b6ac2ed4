/** What may become of the page store: damaged, hung, full, shared by two daemons. */
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdir, open, readdir, rm } from 'node:fs/promises';
import path from 'node:path';
import t, { type Test } from 'tap';
import type { EventRecord, GroupStatus } from '../../src/api/schema.js';
import { hasCode } from '../../src/base/errors.js';
import { onStage, startVictim } from '../support/on-stage.js';
import { sendSignal } from '../support/processes.js';
import { whyNoEngine } from '../support/repository.js';
import type { Stage } from '../support/stage.js';
import { buildTools, type Victim } from '../support/victim.js';
import { waitFor } from '../support/wait-for.js';

const skip = whyNoEngine() ?? false;
const sizeMiB = 48;
const mebibyte = 1 << 20;
const group = 'main';
const paged = ['--ram', 'hot', '--cold-after', '1s'];

// The stage is on tmpfs, which no page store may be.
process.env['REPLPAGE_STORE_IN_MEMORY'] = 'yes';

async function waitForGroup(
  stage: Stage,
  what: string,
  is: (now: GroupStatus) => boolean,
  limitMs = 60_000,
): Promise<GroupStatus> {
  let seen: GroupStatus | undefined;
  await waitFor(
    async () => {
      seen = await stage.group(group);
      return seen !== undefined && is(seen);
    },
    limitMs,
    () => `${what}: ${JSON.stringify(seen)}`,
  );
  return seen as GroupStatus;
}

const isCold = (stage: Stage): Promise<GroupStatus> =>
  waitForGroup(
    stage,
    'little gets cold',
    ({ memory }) => memory.coldBytes >= 0.6 * sizeMiB * mebibyte,
  );

const isPromoted = (stage: Stage, before: GroupStatus): Promise<GroupStatus> =>
  waitForGroup(
    stage,
    'it is not promoted',
    (now) => now.promotion !== null && now.hostPid !== before.hostPid,
  );

async function comesToAnEnd(victim: Victim, done: number): Promise<void> {
  await victim.waitUntil(
    ({ counters }) => counters[0] === done,
    60_000,
    ({ text }) => `it does not come to an end with its cold memory: ${text}`,
  );
}

async function events(stage: Stage): Promise<EventRecord[]> {
  const { stdout } = await stage.command('events', '--json');
  const lines = stdout.trim().split('\n');
  return lines.map((line) => JSON.parse(line) as EventRecord);
}

async function told(t: Test, stage: Stage, what: string): Promise<void> {
  const all = await events(stage);
  t.ok(
    all.some((event) => event.what === what),
    `"${what}" is told`,
  );
}

/** The segments below a store. What is removed while one looks is looked at anew. */
async function segmentsIn(store: string): Promise<string[]> {
  const names = await readdir(store, { recursive: true }).catch((error: unknown) => {
    if (hasCode(error, 'ENOENT') && existsSync(store)) return undefined;
    throw error;
  });
  if (names === undefined) return segmentsIn(store);
  return names.filter((name) => name.includes('/segment-')).map((name) => path.join(store, name));
}

/** A bit in every 64 KiB, as of a disk that has lost some of it. */
async function flipBits(file: string): Promise<void> {
  const handle = await open(file, 'r+');
  try {
    const { size } = await handle.stat();
    for (let at = 70_000; at < size; at += 65_536 + 64) {
      const byte = Buffer.alloc(1);
      await handle.read(byte, 0, 1, at);
      byte[0] = (byte[0] ?? 0) ^ 16;
      await handle.write(byte, 0, 1, at);
    }
  } finally {
    await handle.close();
  }
}

t.test('flipped bits raise SIGBUS where they are, and are told', { skip }, (t) =>
  onStage(t, 'damaged', async (stage) => {
    await stage.startDaemon();
    const victim = await startVictim(stage, 'cold_memory', String(sizeMiB));
    await stage.protect(victim.pid, group, ...paged);
    const before = await isCold(stage);
    for (const segment of await segmentsIn(stage.path('run', 'state', 'store'))) {
      await flipBits(segment);
    }
    sendSignal(before.hostPid, 'SIGKILL');
    await isPromoted(stage, before);
    const damaged = await waitForGroup(
      stage,
      'status does not show what is damaged',
      ({ refill }) => (refill?.damagedBytes ?? 0) > 0 && refill?.coldBytes === 0,
    );
    t.comment(`${(damaged.refill?.damagedBytes ?? 0) >> 12} pages are damaged`);
    await told(t, stage, 'pages lost');
    await victim.waitForRounds(20);
    // It cannot be copied as it is; it runs on, and status says why it is not protected.
    const now = await waitForGroup(stage, 'it is protected', ({ reason }) =>
      /pages were damaged/.test(reason ?? ''),
    );
    sendSignal(now.hostPid, 'SIGUSR1');
    await waitFor(
      async () => (await stage.group(group))?.running === false,
      30_000,
      'it reads what is damaged, and lives',
    );
    const last = await victim.state();
    t.equal(last.errors, 0, last.text);
    t.equal(last.counters[0], 0);
  }),
);

t.test('a store that hangs in a refill is waited for, and that is told', { skip }, (t) =>
  onStage(t, 'hung-store', async (stage) => {
    const tools = await buildTools();
    await stage.startDaemon();
    const victim = await startVictim(stage, 'cold_memory', String(sizeMiB));
    // What it needs to run stays in RAM on a busy machine, too.
    await stage.protect(victim.pid, group, '--ram', 'hot', '--cold-after', '3s');
    const before = await isCold(stage);
    const [segment = ''] = await segmentsIn(stage.path('run', 'state', 'store'));
    const hang = stage.spawn(`${tools}/hang_opens`, [path.dirname(segment)], {
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    if (!hang.stdout || !hang.stdin) throw new Error('no pipes');
    await once(hang.stdout, 'data');
    sendSignal(before.hostPid, 'SIGKILL');
    const promoted = await isPromoted(stage, before);
    await victim.waitForRounds(20);
    const hung = await waitForGroup(
      stage,
      'status does not tell of the store',
      ({ refill }) => refill?.trouble !== null && refill?.trouble !== undefined,
    );
    t.match(hung.refill?.trouble, /has not answered/);
    t.ok((hung.refill?.coldBytes ?? 0) > 0.5 * sizeMiB * mebibyte);
    await told(t, stage, 'page store in trouble');
    await victim.waitForRounds(20);
    sendSignal(promoted.hostPid, 'SIGUSR1');
    await waitForGroup(stage, 'no thread waits', ({ refill }) => (refill?.waitingFaults ?? 0) > 0);
    hang.stdin.end();
    await comesToAnEnd(victim, 1);
    await stage.waitForState(group, ['protected']);
    await told(t, stage, 'page store works again');
  }),
);

/** A file system of its own; gives what mounts it again with other options. */
async function mountStore(stage: Stage, store: string, options: string) {
  await mkdir(store);
  const mount = async (options: string): Promise<string> => {
    const args = ['-o', options, '-t', 'tmpfs', 'none', store];
    const { status, stderr } = await stage.run('mount', args);
    return status === 0 ? '' : stderr;
  };
  const trouble = await mount(options);
  if (trouble !== '') throw new Error(`mount: ${trouble}`);
  return mount;
}

async function unmountStore(stage: Stage, store: string): Promise<void> {
  await stage.unprotect(group).catch(() => undefined);
  await stage.stopDaemon();
  await stage.run('umount', ['--lazy', store]);
}

/** Killed with pages in the store, it is promoted and has all of them. */
async function isRightWhenPromoted(stage: Stage, victim: Victim): Promise<void> {
  const before = await isCold(stage);
  sendSignal(before.hostPid, 'SIGKILL');
  sendSignal((await isPromoted(stage, before)).hostPid, 'SIGUSR1');
  await comesToAnEnd(victim, 1);
  await stage.waitForState(group, ['protected']);
}

t.test('a store that is full keeps pages in RAM, until there is room', { skip }, (t) =>
  onStage(t, 'full-store', async (stage) => {
    const store = stage.path('small');
    const mount = await mountStore(stage, store, 'size=6m');
    try {
      await stage.startDaemon();
      const victim = await startVictim(stage, 'cold_memory', String(sizeMiB));
      await stage.protect(victim.pid, group, ...paged, '--store', store);
      const full = await waitForGroup(
        stage,
        'the store does not get full',
        ({ paging }) => paging?.storeState === 'full',
      );
      t.ok(full.memory.coldBytes < 0.4 * sizeMiB * mebibyte, 'what does not fit stays in RAM');
      await told(t, stage, 'page store in trouble');
      await victim.waitForRounds(20);
      t.equal(await mount('remount,size=200m'), '');
      await isCold(stage);
      await told(t, stage, 'page store works again');
      await isRightWhenPromoted(stage, victim);
    } finally {
      await unmountStore(stage, store);
    }
  }),
);

t.test('a store that is read-only keeps pages in RAM, until it can be written', { skip }, (t) =>
  onStage(t, 'read-only-store', async (stage) => {
    const store = stage.path('read-only');
    const mount = await mountStore(stage, store, 'size=200m');
    try {
      await stage.startDaemon();
      const victim = await startVictim(stage, 'cold_memory', String(sizeMiB));
      await stage.protect(victim.pid, group, ...paged, '--store', store);
      // While a segment is open for writing the kernel refuses it.
      await waitFor(
        async () => {
          const pager = (await stage.group(group))?.paging?.pagerPid ?? 0;
          if (pager > 0) sendSignal(pager, 'SIGKILL');
          return (await mount('remount,ro')) === '';
        },
        20_000,
        () => 'it does not become read-only',
      );
      const failing = await waitForGroup(stage, 'the store does not fail', ({ paging }) =>
        /read-only|not writable/i.test(paging?.trouble ?? ''),
      );
      await told(t, stage, 'page store in trouble');
      await victim.waitForRounds(20);
      const later = (await stage.group(group)) as GroupStatus;
      t.equal(later.state, 'protected');
      t.ok(later.memory.coldBytes <= failing.memory.coldBytes, 'nothing more leaves RAM');
      t.equal(await mount('remount,rw'), '');
      await isCold(stage);
      await told(t, stage, 'page store works again');
      await isRightWhenPromoted(stage, victim);
    } finally {
      await mount('remount,rw');
      await unmountStore(stage, store);
    }
  }),
);

t.test('two daemons share a store', { skip }, (t) =>
  onStage(t, 'shared-store', (first) =>
    onStage(t, 'shared-store', async (second) => {
      const store = first.path('store');
      await mkdir(store);
      const stages = [first, second];
      const victims: Victim[] = [];
      for (const stage of stages) {
        await stage.startDaemon('--store', store);
        const victim = await startVictim(stage, 'cold_memory', String(sizeMiB));
        await stage.protect(victim.pid, group, ...paged);
        victims.push(victim);
      }
      const before = await Promise.all(stages.map(isCold));
      for (const { hostPid } of before) sendSignal(hostPid, 'SIGKILL');
      for (const [i, stage] of stages.entries()) {
        const { hostPid } = await isPromoted(stage, before[i] as GroupStatus);
        sendSignal(hostPid, 'SIGUSR1');
        await comesToAnEnd(victims[i] as Victim, 1);
        await stage.waitForState(group, ['protected']);
      }
      // What one removes is its own.
      await first.unprotect(group);
      const groups = async (): Promise<Set<string>> =>
        new Set((await segmentsIn(store)).map((name) => path.resolve(name, '../..')));
      await waitFor(async () => (await groups()).size === 1, 20_000, 'both, or none, are left');
      await second.unprotect(group);
      await waitFor(
        async () => (await segmentsIn(store)).length === 0,
        20_000,
        async () => `the store still has ${(await segmentsIn(store)).join(' ')}`,
      );
    }),
  ),
);

t.test('a group that ends in the middle of its refill leaves nothing behind', { skip }, (t) =>
  onStage(t, 'ends-in-refill', async (stage) => {
    const tools = await buildTools();
    await stage.startDaemon();
    const victim = await startVictim(stage, 'cold_memory', String(sizeMiB));
    await stage.protect(victim.pid, group, ...paged);
    const before = await isCold(stage);
    const store = stage.path('run', 'state', 'store');
    const [segment = ''] = await segmentsIn(store);
    const hang = stage.spawn(`${tools}/hang_opens`, [path.dirname(segment)], {
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    if (!hang.stdout || !hang.stdin) throw new Error('no pipes');
    await once(hang.stdout, 'data');
    sendSignal(before.hostPid, 'SIGKILL');
    const { hostPid } = await isPromoted(stage, before);
    await waitForGroup(stage, 'nothing is cold', ({ refill }) => (refill?.coldBytes ?? 0) > 0);
    sendSignal(hostPid, 'SIGKILL');
    await stage.waitForState(group, ['ended']);
    hang.stdin.end();
    await waitFor(
      async () => (await segmentsIn(store)).length === 0,
      20_000,
      async () => `the store still has ${(await segmentsIn(store)).join(' ')}`,
    );
    await rm(store, { recursive: true, force: true });
  }),
);
