/**
 * Real programs under load: killed, they run on with their clients connected and every answer given
 * exactly once, twice in a row; crashed, they go on from an epoch; and the same with
 * `--attach epochs`.
 *
 * REPLPAGE_TEST_REDIS_MIB sets the size of redis (64; 1024 is the full size), and
 * REPLPAGE_TEST_PROGRAMS=redis,nginx runs only these.
 */
import t, { type Test } from 'tap';
import type { GroupStatus } from '../../src/api/schema.js';
import { onStage } from '../support/on-stage.js';
import { descendantsOf, isRunning, sendSignal } from '../support/processes.js';
import { Recorder } from '../support/recorder.js';
import { whyNoEngine } from '../support/repository.js';
import {
  readSqlite,
  startMemcached,
  startNginx,
  startNode,
  startPython,
  startRedis,
  startSqlite,
  type Server,
} from '../support/servers.js';
import type { Stage } from '../support/stage.js';
import { Victim } from '../support/victim.js';
import { waitFor } from '../support/wait-for.js';

const skip = whyNoEngine() ?? false;
const only = process.env['REPLPAGE_TEST_PROGRAMS']?.split(',');
const redisMib = Number(process.env['REPLPAGE_TEST_REDIS_MIB'] ?? 64);
const clients = 3;
const answersBetween = 200;

const skipUnless = (name: string): string | false =>
  skip || (only !== undefined && !only.includes(name) && 'not asked for');

const onStageWithDaemon = (t: Test, name: string, body: (stage: Stage) => Promise<void>) =>
  onStage(t, name, async (stage) => {
    await stage.startDaemon();
    await body(stage);
  });

async function connectAll(server: Server): Promise<Recorder[]> {
  const numbers = Array.from({ length: clients }, (_, i) => i);
  return Promise.all(
    numbers.map((i) =>
      // One slow client and some in a hurry, with several requests on the way.
      Recorder.connect({
        port: server.port,
        protocol: server.protocol(i),
        depth: i === 0 ? 1 : 8,
        paceMs: i === 0 ? 5 : 1,
      }),
    ),
  );
}

/** Every client gets `answersBetween` more answers. */
async function allGoOn(recorders: readonly Recorder[]): Promise<void> {
  const before = recorders.map((recorder) => recorder.answered);
  await waitFor(
    () => {
      const failed = recorders.find((recorder) => recorder.error !== undefined);
      if (failed) throw new Error(failed.error);
      return recorders.every((each, i) => each.answered >= (before[i] ?? 0) + answersBetween);
    },
    60_000,
    () => `clients wait: ${recorders.map((each, i) => each.answered - (before[i] ?? 0)).join()}`,
  );
}

interface Rounds {
  readonly kills: number;
  readonly afterKill?: () => Promise<void>;
}

async function survivesKills(
  t: Test,
  stage: Stage,
  server: Server,
  rounds: Rounds = { kills: 2 },
): Promise<GroupStatus> {
  let group = await stage.protect(server.pid, 'main');
  const recorders = await connectAll(server);
  await allGoOn(recorders);
  for (let kill = 1; kill <= rounds.kills; kill++) {
    const killed = group.hostPid;
    for (const recorder of recorders) recorder.takeGapMs();
    sendSignal(killed, 'SIGKILL');
    await allGoOn(recorders);
    const gaps = recorders.map((recorder) => Math.round(recorder.takeGapMs()));
    t.comment(`kill ${kill}: longest wait of each client ${gaps.join(', ')} ms`);
    group = await stage.waitForPromotion('main', group.generation);
    t.equal(group.promotion?.exact, true, `kill ${kill}: nothing is lost`);
    t.notOk(await isRunning(killed), `kill ${kill}: the old process is gone`);
    await allGoOn(recorders);
    await rounds.afterKill?.();
  }
  for (const recorder of recorders) {
    await recorder.stop();
    t.equal(recorder.error, undefined, `${recorder.protocol.name}: ${recorder.answered} answers`);
  }
  return group;
}

/** Counters that a server keeps per client start at 0 for a client that was never there. */
let nextClient = 100;

/** After a crash connections are new, and what was counted since the last epoch is gone. */
async function survivesCrash(
  t: Test,
  stage: Stage,
  server: Server,
  group: GroupStatus,
  signal: NodeJS.Signals,
): Promise<GroupStatus> {
  sendSignal(group.hostPid, signal);
  const promoted = await stage.waitForPromotion('main', group.generation);
  t.equal(promoted.promotion?.exact, false, `${signal}: it goes on from an epoch`);
  const why = signal === 'SIGKILL' ? 'nobody was attached when it died' : null;
  t.equal(promoted.promotion?.whyNotExact, why, 'why it is not exact');
  const recorders = await Promise.all(
    Array.from({ length: 2 }, () =>
      Recorder.connect({
        port: server.port,
        protocol: server.protocol(nextClient++),
        paceMs: 1,
      }),
    ),
  );
  await allGoOn(recorders);
  for (const recorder of recorders) await recorder.stop();
  return promoted;
}

const simple = [
  ['memcached', (stage: Stage) => startMemcached(stage)],
  ['nginx', (stage: Stage) => startNginx(stage)],
  ['node', (stage: Stage) => startNode(stage)],
  ['python3', (stage: Stage) => startPython(stage)],
] as const;

for (const [name, start] of simple) {
  t.test(`${name} survives kills and a crash`, { skip: skipUnless(name) }, (t) =>
    onStageWithDaemon(t, name, async (stage) => {
      const server = await start(stage);
      const group = await survivesKills(t, stage, server);
      await survivesCrash(t, stage, server, group, 'SIGSEGV');
    }),
  );
}

async function redisCommand(stage: Stage, server: Server, ...words: string[]): Promise<string> {
  const { stdout } = await stage.run('redis-cli', ['-p', String(server.port), ...words]);
  return stdout.trim();
}

t.test(
  'redis survives kills, also while it saves, and a crash',
  { skip: skipUnless('redis') },
  (t) =>
    onStageWithDaemon(t, 'redis', async (stage) => {
      const server = await startRedis(stage);
      const keys = redisMib * 900;
      await redisCommand(stage, server, 'DEBUG', 'POPULATE', String(keys), 'filled', '1000');
      const benchmark = stage.spawn('redis-benchmark', [
        ...['-p', String(server.port), '-c', '5', '-n', '100000000', '-t', 'set'],
        ...['-r', '1000000', '-d', '100', '-q'],
      ]);
      let group = await survivesKills(t, stage, server);
      const size = Number(await redisCommand(stage, server, 'DBSIZE'));
      t.ok(size >= keys, `all ${keys} keys are there (${size})`);
      for (const i of [0, 1, keys >> 1, keys - 1]) {
        const value = await redisCommand(stage, server, 'GET', `filled:${i}`);
        t.ok(value.startsWith(`value:${i}`), `filled:${i} is whole`);
      }
      t.equal(benchmark.exitCode, null, 'redis-benchmark is still connected');

      await redisCommand(stage, server, 'BGSAVE');
      await waitFor(
        async () => (await descendantsOf(group.hostPid)).length > 0,
        5000,
        'no child saves',
      ).catch(() => t.comment('the child was too quick to be seen'));
      sendSignal(group.hostPid, 'SIGKILL');
      group = await stage.waitForPromotion('main', group.generation);
      t.equal(group.promotion?.exact, true, 'killed while it saves: nothing is lost');
      await waitFor(
        async () =>
          /rdb_bgsave_in_progress:0[^]*rdb_last_bgsave_status:ok/.test(
            await redisCommand(stage, server, 'INFO', 'persistence'),
          ),
        60_000,
        () => redisCommand(stage, server, 'INFO', 'persistence'),
      );
      const checked = await stage.run('redis-check-rdb', [stage.path('dump.rdb')]);
      t.equal(checked.status, 0, 'the saved file is whole');
      t.equal(benchmark.exitCode, null, 'redis-benchmark is still connected');
      benchmark.kill('SIGKILL');
      // An epoch of the time when it saved has the file open that it saved to.
      const epochs = async (): Promise<number> =>
        (await stage.group('main'))?.epochs.committed ?? 0;
      const committed = await epochs();
      await waitFor(
        async () => (await epochs()) > committed + 1,
        30_000,
        'no epoch without the save is committed',
      );
      await survivesCrash(t, stage, server, group, 'SIGSEGV');
    }),
);

t.test('sqlite3 goes on writing its database', { skip: skipUnless('sqlite3') }, (t) =>
  onStageWithDaemon(t, 'sqlite', async (stage) => {
    const rows = 60_000;
    const { pid, database } = await startSqlite(stage, rows);
    let group = await stage.protect(pid, 'main');
    for (let kill = 1; kill <= 2; kill++) {
      const before = await readSqlite(stage, database);
      sendSignal(group.hostPid, 'SIGKILL');
      await waitFor(
        async () => ((await readSqlite(stage, database))?.rows ?? 0) > (before?.rows ?? 0) + 20,
        60_000,
        `kill ${kill}: no more rows are written`,
      );
      group = await stage.waitForPromotion('main', group.generation);
      const after = await readSqlite(stage, database);
      t.equal(after?.integrity, 'ok', `kill ${kill}: the database is intact`);
      t.equal(after?.rows, after?.last, `kill ${kill}: no row is missing`);
    }
    // A crash: the file has changed since the last epoch, so going on from that is refused.
    sendSignal(group.hostPid, 'SIGSEGV');
    const { generation } = group;
    const ended = await waitFor(
      async () => {
        const now = await stage.group('main');
        if (now === undefined) return false;
        const over = ['ended', 'failed', 'unprotected'].includes(now.state);
        return (over || (now.state === 'protected' && now.generation > generation)) && now;
      },
      30_000,
      'neither promoted nor refused',
    );
    const after = await readSqlite(stage, database);
    t.equal(after?.integrity, 'ok', 'after a crash the database is intact');
    t.equal(after?.rows, after?.last, 'after a crash no row is missing');
    if (ended.generation === generation) {
      t.match(ended.reason ?? '', /file|chang/i, 'it says that a file has changed');
    }
  }),
);

t.test('threads with AVX registers and futexes', { skip: skipUnless('avx') }, (t) =>
  onStageWithDaemon(t, 'avx', async (stage) => {
    const victim = await Victim.start(stage, 'avx_futex');
    if (typeof victim === 'string') {
      t.comment(victim);
      return;
    }
    // Its status page is a file that it maps and changes all the time, also after the last epoch.
    let group = await stage.protect(victim.pid, 'main', '--files', 'keep');
    for (const signal of ['SIGKILL', 'SIGKILL', 'SIGSEGV'] as const) {
      await victim.waitForRounds(20);
      sendSignal(group.hostPid, signal);
      group = await stage.waitForPromotion('main', group.generation);
      await victim.waitForRounds(20);
      t.pass(`it goes on after ${signal}`);
    }
  }),
);

t.test('with --attach epochs a kill loses at most an epoch', { skip: skipUnless('epochs') }, (t) =>
  onStageWithDaemon(t, 'epochs', async (stage) => {
    const server = await startRedis(stage);
    await redisCommand(stage, server, 'DEBUG', 'POPULATE', '20000', 'filled', '1000');
    let group = await stage.protect(server.pid, 'main', '--attach', 'epochs');
    for (let kill = 1; kill <= 2; kill++) {
      await redisCommand(stage, server, 'SET', 'mark', String(kill));
      const { epoch } = (await stage.group('main')) ?? group;
      await waitFor(
        async () => ((await stage.group('main'))?.epoch ?? 0) > epoch + 1,
        20_000,
        'no epoch is committed',
      );
      group = await survivesCrash(t, stage, server, group, 'SIGKILL');
      t.equal(await redisCommand(stage, server, 'GET', 'mark'), String(kill), 'the mark is there');
      t.equal(await redisCommand(stage, server, 'GET', 'filled:19999').then((v) => v.length), 1000);
    }
  }),
);
