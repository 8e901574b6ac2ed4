/**
 * What may be killed without harm to the primary: the daemon, the keeper, the outside holder, the
 * replica itself, at any moment.
 *
 * REPLPAGE_TEST_KILLS sets how often the daemon and a fault server are killed (8; the full size is
 * 200), REPLPAGE_TEST_SEED the moments.
 */
import { readdir } from 'node:fs/promises';
import t from 'tap';
import { isRunning, keepersOf, sendSignal, statusField } from '../support/processes.js';
import { Recorder } from '../support/recorder.js';
import { onStage, startVictim } from '../support/on-stage.js';
import { whyNoEngine } from '../support/repository.js';
import { startRedis } from '../support/servers.js';
import type { Stage } from '../support/stage.js';
import { buildTools } from '../support/victim.js';
import { letRun, waitFor } from '../support/wait-for.js';

const skip = whyNoEngine() ?? false;
const kills = Number(process.env['REPLPAGE_TEST_KILLS'] ?? 8);
const seed = Number(process.env['REPLPAGE_TEST_SEED'] ?? Date.now() % 1_000_000);

/** Numbers from 0 to 1 that the seed decides. */
function* randomNumbers(state: number): Generator<number, never> {
  let value = state | 1;
  for (;;) {
    value = (Math.imul(value, 1_103_515_245) + 12_345) >>> 0;
    yield (value >>> 8) / 2 ** 24;
  }
}
const random = randomNumbers(seed);
t.comment(`seed ${seed}`);

const parts = ['keeper', 'holder', 'replica'] as const;
type Part = (typeof parts)[number];

/**
 * The processes that stand behind a group: the holder outside the PID namespace, pid 1 inside it,
 * and the replica below that. They have the file open that takes the group's output.
 */
async function partsOf(stage: Stage, name: string): Promise<Map<Part, number>> {
  const found = new Map<Part, number>();
  for (const pid of await keepersOf(stage.path('run', 'log', `${name}.log`))) {
    const inside = (await statusField(pid, 'NSpid'))?.trim().split(/\s+/) ?? [];
    if (inside.length < 2) found.set('holder', pid);
    else if (inside.at(-1) === '1') found.set('keeper', pid);
    else found.set('replica', pid);
  }
  return found;
}

t.test('the daemon is killed again and again', { skip, timeout: 3_600_000 }, (t) =>
  onStage(t, 'daemon-kills', async (stage) => {
    const tools = await buildTools();
    const victims = {
      signals: await startVictim(stage, 'signal_count', '500'),
      registers: await startVictim(stage, 'registers'),
      memory: await startVictim(stage, 'memory_model'),
    };
    const redis = await startRedis(stage);
    const recorder = await Recorder.connect({
      port: redis.port,
      protocol: redis.protocol(0),
      depth: 4,
      paceMs: 1,
    });
    const all = Object.entries(victims);
    const count = 1_000_000;
    const sender = stage.spawn(`${tools}/sender`, [
      ...[String(victims.signals.pid), '500', String(count)],
    ]);
    for (let kill = 1; kill <= kills; kill++) {
      await stage.startDaemon();
      for (const [name, { pid }] of all) stage.askProtect(pid, name);
      stage.askProtect(redis.pid, 'redis');
      await letRun((random.next().value ?? 0) * (kill % 2 ? 300 : 2000));
      await stage.killDaemon();
      for (const [name, victim] of all) {
        await victim.waitForRounds(2).catch((error: unknown) => {
          throw new Error(`after kill ${kill}: ${name}`, { cause: error });
        });
      }
      if (recorder.error !== undefined) throw new Error(`after kill ${kill}: ${recorder.error}`);
    }
    sender.kill('SIGKILL');
    for (const [name, { pid, child }] of all) {
      t.equal(child.exitCode ?? child.signalCode, null, `${name} is the process it was`);
      await waitFor(
        async () => (await statusField(pid, 'TracerPid')) === '0',
        5000,
        `${name} is still traced`,
      );
    }
    const { counters } = await victims.signals.state();
    t.ok((counters[1] ?? 0) > kills, `${counters[1]} signals from outside, none lost`);
    await recorder.stop();
    t.equal(recorder.error, undefined, `redis gave ${recorder.answered} right answers`);
    await stage.startDaemon();
    const group = await stage.waitForState('memory', ['protected', 'lagging'], 60_000);
    sendSignal(group.hostPid, 'SIGKILL');
    await stage.waitForPromotion('memory', group.generation);
    await victims.memory.waitForRounds(20);
    t.pass('after all that a new daemon protects as ever');
  }),
);

for (const part of parts) {
  t.test(`the ${part} is killed: the primary runs on unprotected`, { skip }, (t) =>
    onStage(t, `${part}-killed`, async (stage) => {
      await stage.startDaemon();
      const victim = await startVictim(stage, 'memory_load', '8', '2', '200');
      await stage.protect(victim.pid, 'main');
      const found = await partsOf(stage, 'main');
      const pid = found.get(part);
      t.ok(pid, `there is a ${part}`);
      if (pid === undefined) return;
      sendSignal(pid, 'SIGKILL');
      const group = await stage.waitForState('main', ['unprotected'], 20_000);
      t.ok(group.reason, 'it says why');
      await victim.waitForRounds(50);
      t.equal(victim.child.exitCode ?? victim.child.signalCode, null, 'it is the process it was');
      t.equal(await statusField(victim.pid, 'TracerPid'), '0', 'nobody traces it any more');
      const again = await stage.protect(victim.pid, 'main');
      t.equal(again.state, 'protected', 'it can be protected again');
      // Twice: what one protection leaves behind must not blind the next.
      await stage.unprotect('main');
      const third = await stage.protect(victim.pid, 'main');
      sendSignal(third.hostPid, 'SIGKILL');
      await stage.waitForPromotion('main', third.generation);
      await victim.waitForRounds(20);
    }),
  );
}

t.test('a promoted process whose fault server dies never reads a zero', { skip }, (t) =>
  onStage(t, 'fault-server', async (stage) => {
    await stage.startDaemon();
    let ended = 0;
    for (let kill = 1; kill <= kills; kill++) {
      const name = `main-${kill}`;
      const victim = await startVictim(stage, 'memory_load', '48', '2', '20000');
      await stage.protect(victim.pid, name);
      await victim.waitForRounds(5);
      const found = await partsOf(stage, name);
      const { hostPid } = (await stage.group(name)) ?? { hostPid: victim.pid };
      sendSignal(hostPid, 'SIGKILL');
      await letRun((random.next().value ?? 0) * 20);
      const server = found.get(kill % 4 === 0 ? 'holder' : 'keeper');
      if (server === undefined) throw new Error('no keeper was found');
      sendSignal(server, 'SIGKILL');
      const { rounds } = await victim.state();
      // It either goes on, right, or is dead: both are said by its status page and its processes.
      await waitFor(
        async () => {
          const now = await victim.state();
          if (now.errors > 0) throw new Error(`kill ${kill}: it read something wrong: ${now.text}`);
          if (now.rounds >= rounds + 5) return true;
          const own = await victim.processes();
          return own.length === 0 && ++ended > 0;
        },
        30_000,
        `kill ${kill}: it neither runs nor is dead`,
      );
      await stage.unprotect(name).catch(() => undefined);
      await victim.end();
    }
    t.pass(`${kills} kills, it went on or ended (${ended}), and read nothing wrong`);
  }),
);

t.test('a keeper that hangs after a kill makes nobody wait for ever', { skip }, (t) =>
  onStage(t, 'keeper-hangs', async (stage) => {
    await stage.startDaemon();
    const victim = await startVictim(stage, 'memory_load', '48', '2', '20000');
    await stage.protect(victim.pid, 'main');
    await victim.waitForRounds(2);
    const keeper = (await partsOf(stage, 'main')).get('keeper');
    if (keeper === undefined) throw new Error('no keeper was found');
    sendSignal(victim.pid, 'SIGKILL');
    await letRun(3);
    sendSignal(keeper, 'SIGSTOP');
    const asked = stage.command('unprotect', 'main');
    const shown = await stage.group('main');
    t.comment(`stopped while it was ${shown?.state ?? 'removed'}`);
    const told = await asked; // at most a minute for the promotion, and one for its memory
    t.comment(`${told.status}: ${told.stderr.trim()}`);
    t.same((await stage.group('main')) ?? null, null, 'it is forgotten');
    const { errors, text } = await victim.state();
    t.equal(errors, 0, text);
    sendSignal(keeper, 'SIGKILL');
    await victim.end();
  }),
);

t.test(
  'a primary that dies while the daemon is being killed is not run twice',
  { skip, timeout: 3_600_000 },
  (t) =>
    onStage(t, 'both-killed', async (stage) => {
      for (let kill = 1; kill <= Math.min(kills, 50); kill++) {
        await stage.startDaemon();
        const name = `main-${kill}`;
        const victim = await startVictim(stage, 'pending_signals');
        await stage.protect(victim.pid, name);
        await victim.waitForRounds(5);
        const wait = letRun((random.next().value ?? 0) * 5);
        sendSignal(victim.pid, 'SIGKILL');
        await wait;
        await stage.killDaemon();
        await waitFor(
          async () => !(await isRunning(victim.pid)),
          20_000,
          `kill ${kill}: the dead primary is still there`,
        );
        await stage.startDaemon();
        const group = await waitFor(
          async () => {
            const seen = await stage.group(name);
            return (
              seen &&
              ['ended', 'protected', 'lagging', 'unprotected', 'failed'].includes(seen.state) &&
              seen
            );
          },
          30_000,
          `kill ${kill}: the group has no settled state`,
        );
        if (['protected', 'lagging'].includes(group.state)) await victim.waitForRounds(10);
        const { errors, text } = await victim.state();
        t.equal(errors, 0, `kill ${kill}: ${group.state} ${text}`);
        await stage.unprotect(name).catch(() => undefined);
        await victim.end();
        await stage.stopDaemon();
      }
    }),
);

/** A holder takes its keeper's socket away when both end. */
async function keepersLeft(stage: Stage): Promise<number> {
  return (await readdir(stage.path('run', 'keepers'))).length;
}

t.test('keepers of what has ended do not linger', { skip }, (t) =>
  onStage(t, 'keepers-end', async (stage) => {
    await stage.startDaemon();
    const victim = await startVictim(stage, 'registers');
    let group = await stage.protect(victim.pid, 'main');
    for (let kill = 1; kill <= 3; kill++) {
      sendSignal(group.hostPid, 'SIGKILL');
      group = await stage.waitForPromotion('main', group.generation);
      await victim.waitForRounds(5);
    }
    const keepers = (count: number): Promise<unknown> =>
      waitFor(
        async () => (await keepersLeft(stage)) === count,
        5000,
        async () => `${await keepersLeft(stage)} keepers, not ${count}`,
      );
    await keepers(2);
    t.pass('one has the process that runs, one its replica');
    sendSignal(group.hostPid, 'SIGTERM');
    await stage.waitForState('main', ['ended']);
    await keepers(0);
    t.pass('none is left when the group has ended');
  }),
);
