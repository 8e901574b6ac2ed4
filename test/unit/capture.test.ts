import t from 'tap';
import type { Clock } from '../../src/base/clock.js';
import { describeDeath, nameSignals } from '../../src/capture/death.js';
import { Group } from '../../src/capture/group.js';
import type { Announcement, GroupHost, GroupSpec } from '../../src/capture/group-spec.js';
import {
  crashDelayMs,
  laggingAfter,
  newGroup,
  retriesLeft,
  startTriesMax,
  step,
  type GroupCore,
  type GroupEffect,
  type GroupEvent,
} from '../../src/capture/group-state.js';
import {
  costUs,
  firstPace,
  intervalMsMax,
  nextPace,
  type EpochCost,
  type Pace,
} from '../../src/capture/pace-policy.js';
import type {
  EpochStats,
  NativeGroup,
  NativeGroupEvent,
  NativeGroupOptions,
  PromotionReport,
  StartReport,
} from '../../src/native/group.js';

const targets = { intervalMs: 100, overhead: 0.05, maxPauseMs: 50 };
const manyProcessors = 64;

/** Epochs of a load whose written pages grow with the interval up to its working set. */
function settle(pagesPerMs: number, workingSet: number, epochs: number): Pace {
  let pace = firstPace(targets);
  for (let i = 0; i < epochs; i++) {
    const dirtyPages = Math.min(workingSet, pagesPerMs * pace.intervalMs);
    const pauseUs = 500 + dirtyPages;
    const cost = {
      pauseUs,
      cpuUs: pauseUs * 2,
      dirtyPages,
      elapsedMs: pace.intervalMs,
      abandoned: false,
    };
    pace = nextPace(targets, pace, cost, 2);
  }
  return pace;
}

t.test('a cheap epoch keeps the interval that was asked for', (t) => {
  const pace = settle(0.1, 100, 10);
  t.equal(pace.intervalMs, 100);
  t.equal(pace.bound, 'asked');
  t.match(pace.why, /as asked: an epoch costs the primary .*, within its budget of 5\.0%/);
  t.ok(pace.overheadUsed < 0.05);
  t.end();
});

t.test('the interval stretches until the cost fits the budget, and comes back after', (t) => {
  const busy = settle(50, 100_000, 60);
  t.equal(busy.bound, 'budget');
  t.ok(busy.intervalMs > 2000 && busy.intervalMs < intervalMsMax, String(busy.intervalMs));
  t.ok(busy.overheadUsed < 0.055, `uses ${busy.overheadUsed}`);
  t.match(busy.why, /stretched from 100 ms/);
  let pace = busy;
  const calm: EpochCost = {
    pauseUs: 300,
    cpuUs: 300,
    dirtyPages: 10,
    elapsedMs: 100,
    abandoned: false,
  };
  let epochs = 0;
  while (pace.intervalMs > 100 && epochs < 50) {
    pace = nextPace(targets, pace, calm, 2);
    epochs++;
  }
  t.equal(pace.intervalMs, 100);
  t.ok(epochs < 20, `came back after ${epochs} epochs`);
  t.end();
});

t.test('what is spent is paid back before more is, from the first epoch on', (t) => {
  let pace = firstPace(targets);
  let nowMs = 0;
  let spentMs = 0;
  while (nowMs < 30_000) {
    nowMs += pace.intervalMs;
    t.ok(spentMs <= 0.055 * nowMs, `${spentMs} ms spent in ${nowMs} ms`);
    const dirtyPages = Math.min(100_000, 90 * pace.intervalMs);
    const pauseUs = 500 + Math.min(dirtyPages, 512);
    const cpuUs = pauseUs + 3 * dirtyPages;
    const cost = { pauseUs, cpuUs, dirtyPages, elapsedMs: pace.intervalMs, abandoned: false };
    spentMs += costUs(cost, 2) / 1000;
    pace = nextPace(targets, pace, cost, 2);
  }
  t.end();
});

t.test('an abandoned epoch does not make epochs look cheap', (t) => {
  const before = { ...firstPace(targets), intervalMs: 2000, costUs: 100_000 };
  const cost = { pauseUs: 300, cpuUs: 300, dirtyPages: 0, elapsedMs: 2000, abandoned: true };
  t.equal(nextPace(targets, before, cost, 2).intervalMs, 2000);
  t.end();
});

t.test('one outlier moves the interval by a bounded factor', (t) => {
  const outlier = { pauseUs: 5_000_000, cpuUs: 0, dirtyPages: 0, elapsedMs: 100, abandoned: false };
  const pace = nextPace(targets, { ...firstPace(targets), costUs: 500 }, outlier, manyProcessors);
  t.ok(pace.intervalMs <= 400);
  t.end();
});

t.test('a load over any budget stops at the longest interval and says so', (t) => {
  const pace = settle(1000, 50_000_000, 30);
  t.equal(pace.bound, 'ceiling');
  t.equal(pace.intervalMs, intervalMsMax);
  t.match(pace.why, /more than its budget of 5\.0%/);
  t.end();
});

t.test('a pause over the limit shortens the interval as far as the budget allows', (t) => {
  const generous = { intervalMs: 5000, overhead: 0.5, maxPauseMs: 10 };
  const long = { pauseUs: 20_000, cpuUs: 0, dirtyPages: 0, elapsedMs: 5000, abandoned: false };
  const shorter = nextPace(generous, firstPace(generous), long, manyProcessors);
  t.equal(shorter.bound, 'pause');
  t.equal(shorter.intervalMs, 2500);
  t.match(shorter.why, /over the limit of 10\.0 ms/);
  const tight = { ...targets, maxPauseMs: 10 };
  const held = nextPace(tight, firstPace(tight), long, manyProcessors);
  t.equal(held.bound, 'budget');
  t.match(held.why, /which the budget does not let shrink/);
  t.end();
});

t.test('copying beside the primary counts as far as processors are short', (t) => {
  const cost = { pauseUs: 1000, cpuUs: 5000, dirtyPages: 0, elapsedMs: 100, abandoned: false };
  t.equal(costUs(cost, 2), 5000);
  t.equal(costUs(cost, 4), 3000);
  t.equal(costUs({ ...cost, dirtyPages: 1000 }, 2), 7000, 'the write faults are its own');
  t.end();
});

const report: PromotionReport = {
  epoch: 9,
  pid: 4,
  hostPid: 2000,
  exact: true,
  decisionToRunUs: 150,
  deathToRunUs: 900,
  lazyPages: 0,
  keeperSocket: '/run/replpage/keepers/a.1.sock',
};

interface Run {
  readonly core: GroupCore;
  readonly effects: readonly GroupEffect[];
}

/** Feeds events one after the other; the effects are those of the last. */
function feed(core: GroupCore, ...events: readonly GroupEvent[]): Run {
  let effects: readonly GroupEffect[] = [];
  for (const event of events) {
    const result = step(core, event);
    core = result.group;
    effects = result.effects;
  }
  return { core, effects };
}

const types = (run: Run): string[] => run.effects.map((effect) => effect.type);
const started: GroupEvent = { type: 'started', epoch: 1 };
const killed: GroupEvent = { type: 'died', cause: 'sigkill', reason: 'killed by SIGKILL' };
const crashed: GroupEvent = { type: 'died', cause: 'crash', reason: 'crashed by SIGSEGV' };
const promotedAndDrained: readonly GroupEvent[] = [
  { type: 'promoted', report },
  { type: 'drained', us: 1, pages: 0 },
];
const fresh = (): GroupCore => newGroup(1000, 1, 3);

t.test('a group is protected by its first epoch and kept so by the next', (t) => {
  const copying = feed(fresh(), { type: 'progress', bytes: 5, bytesTotal: 10 });
  t.same(copying.core.phase, { kind: 'protecting', bytes: 5, bytesTotal: 10 });
  const run = feed(copying.core, started);
  t.same(run.core.phase, { kind: 'protected' });
  t.same(types(run), ['persist', 'note']);
  const next = feed(run.core, { type: 'committed', epoch: 2 });
  t.match(next.core, { epoch: 2, committedTotal: 2 });
  t.same(next.effects, []);
  t.end();
});

t.test('a first start that fails leaves nothing behind', (t) => {
  const run = feed(fresh(), { type: 'startFailed', reason: 'gone' });
  t.equal(run.core.phase.kind, 'failed');
  t.same(types(run), ['stop', 'persist', 'note']);
  t.end();
});

t.test('abandoned epochs in a row show as lagging, one committed epoch ends it', (t) => {
  const abandoned: GroupEvent = { type: 'abandoned', reason: 'a thread is in D state' };
  const almost = feed(fresh(), started, ...Array<GroupEvent>(laggingAfter - 1).fill(abandoned));
  t.equal(almost.core.phase.kind, 'protected');
  const lagging = feed(almost.core, abandoned);
  t.same(lagging.core.phase, { kind: 'lagging', reason: 'a thread is in D state' });
  t.same(types(lagging), ['note']);
  t.same(feed(lagging.core, abandoned).effects, [], 'said once');
  const back = feed(lagging.core, { type: 'committed', epoch: 5 });
  t.equal(back.core.phase.kind, 'protected');
  t.match(back.core, { abandonedRun: 0, abandonedTotal: laggingAfter });
  t.same(types(back), ['note']);
  t.end();
});

t.test('a killed primary is promoted, and what runs is protected again', (t) => {
  const dying = feed(fresh(), started, killed);
  t.equal(dying.core.phase.kind, 'promoting');
  const lazy = feed(dying.core, { type: 'promoted', report: { ...report, lazyPages: 7 } });
  t.same(lazy.core.phase, { kind: 'promoted', lazyPages: 7 });
  t.same(types(lazy), ['persist', 'announce', 'note']);
  t.match(lazy.core, { hostPid: 2000, generation: 1, epoch: 9, crashes: 0 });
  const drained = feed(lazy.core, { type: 'drained', us: 10, pages: 7 });
  t.equal(drained.core.phase.kind, 'protecting');
  t.equal(drained.core.generation, 2, 'each replica has a generation of its own');
  t.same(types(drained), ['note', 'persist', 'stop', 'start']);
  const again = feed(drained.core, { type: 'started', epoch: 1 });
  t.equal(again.core.phase.kind, 'protected');
  t.end();
});

t.test('crashes are counted, and each next one waits longer', (t) => {
  let core = feed(fresh(), started).core;
  for (let crash = 1; crash <= 3; crash++) {
    core = feed(core, crashed, ...promotedAndDrained, started).core;
    t.equal(core.crashes, crash);
    t.equal(retriesLeft(core), 3 - crash);
  }
  t.equal(retriesLeft({ ...core, crashes: 9 }), 0);
  const kill = feed(core, killed, { type: 'promoted', report });
  t.equal(kill.core.crashes, 3, 'a kill is no crash');
  t.same([0, 1, 2, 3, 10].map(crashDelayMs), [0, 1000, 2000, 4000, 30_000]);
  t.end();
});

t.test('a promoted process that cannot be protected again is tried again, not for ever', (t) => {
  let run = feed(fresh(), started, killed, ...promotedAndDrained);
  const failed: GroupEvent = { type: 'startFailed', reason: 'busy' };
  const delays: number[] = [];
  while (run.core.phase.kind === 'protecting') {
    run = feed(run.core, failed);
    for (const effect of run.effects) if (effect.type === 'start') delays.push(effect.delayMs);
  }
  t.same(delays, [1000, 2000, 4000, 8000]);
  t.equal(delays.length, startTriesMax - 1);
  t.same(run.core.phase, { kind: 'unprotected', reason: 'busy' });
  t.end();
});

t.test('a group that a restarted daemon took up is tried again too', (t) => {
  const run = feed({ ...fresh(), resumed: true }, { type: 'startFailed', reason: 'busy' });
  t.equal(run.core.phase.kind, 'protecting');
  t.equal(run.core.generation, 2);
  t.end();
});

t.test('promotion on request works from protected only, and may fail back to it', (t) => {
  t.same(feed(fresh(), { type: 'promoteAsked' }).effects, []);
  const asked = feed(fresh(), started, { type: 'promoteAsked' });
  t.same(types(asked), ['promote']);
  const back = feed(asked.core, { type: 'promoteFailed', reason: 'keeper gone' });
  t.equal(back.core.phase.kind, 'protected');
  t.same(types(back), ['note']);
  t.end();
});

t.test('the end, a lost keeper, detach and unprotect stop the native side, once', (t) => {
  const ends: [GroupEvent, string][] = [
    [{ type: 'ended', reason: 'ended by SIGTERM' }, 'ended'],
    [{ type: 'lost', reason: 'the keeper was killed' }, 'unprotected'],
    [{ type: 'detachAsked' }, 'detached'],
    [{ type: 'unprotectAsked' }, 'removed'],
  ];
  for (const [event, kind] of ends) {
    const run = feed(fresh(), started, event);
    t.equal(run.core.phase.kind, kind);
    t.same(types(run), ['stop', 'persist', 'note']);
    for (const late of [started, killed, { type: 'promoted', report } as const]) {
      t.same(feed(run.core, late).core, run.core, `${late.type} comes too late after ${kind}`);
    }
  }
  const removed = feed(
    fresh(),
    started,
    { type: 'ended', reason: 'x' },
    { type: 'unprotectAsked' },
  );
  t.equal(removed.core.phase.kind, 'removed');
  t.end();
});

t.test('a death is told in words', (t) => {
  t.equal(describeDeath({ cause: 'sigkill' }), 'killed by SIGKILL');
  t.equal(describeDeath({ cause: 'crash', signal: 11 }), 'crashed by SIGSEGV');
  t.equal(describeDeath({ cause: 'signal', signal: 15 }), 'ended by SIGTERM');
  t.equal(describeDeath({ cause: 'signal', signal: 63 }), 'ended by signal 63');
  t.equal(describeDeath({ cause: 'exit', status: 3 }), 'ended by itself with status 3');
  t.equal(nameSignals('ended by signal 15, then signal 99'), 'ended by SIGTERM, then signal 99');
  t.end();
});

/** A native group that does what the test says. */
class ScriptedNative implements NativeGroup {
  readonly options: NativeGroupOptions;
  readonly emit: (event: NativeGroupEvent) => void;
  epochs = 0;
  stopped = 0;
  startResult: () => Promise<StartReport> = () =>
    Promise.resolve({ epoch: 1, tracker: 'uffd-wp', copiedBytes: 10, copyUs: 5, warnings: [] });
  epochResult: () => Promise<EpochStats> = () => Promise.resolve(epochStats(this.epochs + 1));
  promoteResult: () => Promise<PromotionReport> = () => Promise.resolve(report);

  constructor(options: NativeGroupOptions, emit: (event: NativeGroupEvent) => void) {
    this.options = options;
    this.emit = emit;
  }
  start(): Promise<StartReport> {
    return this.startResult();
  }
  epoch(): Promise<EpochStats> {
    this.epochs++;
    return this.epochResult();
  }
  promote(): Promise<PromotionReport> {
    return this.promoteResult();
  }
  stop(): Promise<void> {
    this.stopped++;
    return Promise.resolve();
  }
  counters(): Record<string, number> {
    return { epochs: this.epochs };
  }
}

function epochStats(epoch: number): EpochStats {
  return {
    epoch,
    pauseUs: 200,
    copyUs: 10,
    commitUs: 10,
    cpuUs: 300,
    dirtyPages: 3,
    zeroPages: 0,
    bytes: 12_288,
    precopyRounds: 1,
    abandoned: false,
    mappedBytes: 1 << 20,
    primaryBytes: 5 << 20,
    residentBytes: 1 << 19,
    threads: 1,
    processes: 1,
  };
}

/** Time that passes only when something sleeps: as fast as it can, in order. */
class SteppedClock implements Clock {
  #nowMs = 0;
  nowMs(): number {
    return this.#nowMs;
  }
  wall(): Date {
    return new Date(0);
  }
  async sleep(ms: number): Promise<void> {
    this.#nowMs += Math.max(0, ms);
    await new Promise((resolve) => setImmediate(resolve));
  }
}

const spec: GroupSpec = {
  ...targets,
  name: 'a',
  attach: 'always',
  onExit: 'end',
  files: 'refuse',
  retries: 3,
  tracker: 'auto',
  stdio: null,
  pidfile: undefined,
  onPromote: undefined,
  owner: { uid: 0, gid: 0, groups: [] },
};

function scene(prepare: (native: ScriptedNative) => void = () => undefined) {
  const natives: ScriptedNative[] = [];
  const notes: string[] = [];
  const announced: Announcement[] = [];
  const silent = () => undefined;
  const log = { debug: silent, info: silent, warn: silent, error: silent, child: () => log };
  const host: GroupHost = {
    clock: new SteppedClock(),
    log,
    processors: 2,
    limits: { freezeDeadlineUs: 20_000, stagingBytesMax: 1, spillBytesMax: 1 },
    paths: { keeperPath: '/k', runtimeDir: '/r', spillDir: '/s' },
    createNative: (options, emit) => {
      const native = new ScriptedNative(options, emit);
      prepare(native);
      natives.push(native);
      return native;
    },
    askKeeper: () => Promise.reject(new Error('no keeper')),
    processAlive: () => true,
    note: (_group, what) => void notes.push(what),
    persist: silent,
    announce: (_spec, what) => void announced.push(what),
  };
  return { group: new Group(spec, host, fresh()), natives, notes, announced };
}

async function waitFor(what: string, condition: () => boolean): Promise<void> {
  for (let i = 0; i < 10_000 && !condition(); i++) {
    await new Promise((resolve) => setImmediate(resolve));
  }
  if (!condition()) throw new Error(`waited in vain for ${what}`);
}

t.test('a group takes epochs until it is unprotected', async (t) => {
  const { group, natives, notes } = scene();
  const start = await group.protect();
  t.equal(start.tracker, 'uffd-wp');
  const [native] = natives;
  t.match(native?.options, { pid: 1000, generation: 1, retriesLeft: 3, crashDelayMs: 0 });
  await waitFor('epochs', () => group.core.epoch > 20);
  t.match(group.snapshot(), { pace: { intervalMs: 100 }, counters: { epochs: /\d+/ } });
  await group.unprotect();
  t.equal(native?.stopped, 1);
  t.same(notes, ['protected', 'unprotected']);
});

t.test('a promotion starts the next generation; events of the old one are ignored', async (t) => {
  const { group, natives, announced, notes } = scene();
  await group.protect();
  natives[0]?.emit({ type: 'died', cause: 'crash', signal: 11 });
  natives[0]?.emit({ type: 'promoted', ...report });
  natives[0]?.emit({ type: 'drained', us: 1, pages: 0 });
  await waitFor('the second start', () => natives.length === 2);
  await waitFor('protection', () => group.core.phase.kind === 'protected');
  t.match(natives[1]?.options, { pid: 2000, generation: 2, retriesLeft: 2, crashDelayMs: 1000 });
  t.match(announced, [{ hostPid: 2000, generation: 1, exact: true }]);
  natives[0]?.emit({ type: 'ended', reason: 'late' });
  natives[0]?.emit({ type: 'unprotected', reason: 'late' });
  t.equal(group.core.phase.kind, 'protected');
  t.equal(natives[0]?.stopped, 1);
  t.same(notes, ['protected', 'died', 'promoted', 'drained', 'protected']);
  await group.shutdown();
  t.equal(natives[1]?.stopped, 1);
  t.equal(group.core.phase.kind, 'protected', 'its record stays for the next daemon');
});

t.test('promote resolves with the promotion, and rejects when it fails', async (t) => {
  const { group, natives } = scene();
  await t.rejects(group.promote(), { code: 'ERR_STATE' }, 'nothing to promote yet');
  await group.protect();
  const native = natives[0] as ScriptedNative;
  native.promoteResult = () => Promise.reject(new Error('keeper gone'));
  await t.rejects(group.promote(), { code: 'ERR_NATIVE', message: 'keeper gone' });
  t.equal(group.core.phase.kind, 'protected');
  const before = native.epochs;
  await waitFor('epochs after it', () => native.epochs > before + 3);
  native.promoteResult = () => Promise.resolve(report);
  await group.promote();
  t.equal(group.core.phase.kind, 'promoted');
  native.emit({ type: 'drained', us: 1, pages: 0 });
  await waitFor('the next generation', () => natives.length === 2);
  await waitFor('protection', () => group.core.phase.kind === 'protected');
  await group.unprotect();
});

t.test('a refused start is told as it is, with what was refused', async (t) => {
  const refusals = [{ pid: 1000, object: 'fd 7', kind: 'io_uring', why: 'cannot be copied' }];
  const { group, natives } = scene((native) => {
    const error = Object.assign(new Error('refused'), { code: 'ERR_REFUSED', refusals });
    native.startResult = () => Promise.reject(error);
  });
  await t.rejects(group.protect(), { code: 'ERR_REFUSED', refusals });
  t.match(group.core.phase, {
    kind: 'failed',
    reason: /refused; pid 1000, fd 7: io_uring: cannot be copied/,
  });
  await waitFor('the stop', () => natives[0]?.stopped === 1);
});

t.test('what is taken up later ends protection by name, unless it passes', async (t) => {
  const refusals = [{ pid: 1000, object: 'fd 7', kind: 'io_uring', why: 'cannot be copied' }];
  const refused = Object.assign(new Error('refused'), { code: 'ERR_REFUSED', refusals });
  const lasting = scene((native) => {
    native.epochResult = () => Promise.reject(refused);
  });
  await lasting.group.protect();
  await waitFor('the end', () => lasting.group.core.phase.kind === 'unprotected');
  t.match(lasting.group.core.phase, {
    reason: 'refused; pid 1000, fd 7: io_uring: cannot be copied',
  });
  t.ok((lasting.natives[0]?.epochs ?? 0) > 10, 'it had the time to pass');
  const passing = scene((native) => {
    native.epochResult = () =>
      native.epochs % 9 === 0
        ? Promise.resolve(epochStats(native.epochs))
        : Promise.reject(refused);
  });
  await passing.group.protect();
  await waitFor('going on', () => (passing.natives[0]?.epochs ?? 0) > 100);
  t.not(passing.group.core.phase.kind, 'unprotected');
  await passing.group.unprotect();
});

t.test('epochs that fail outright give protection up, abandoned ones do not', async (t) => {
  const failing = scene((native) => {
    native.epochResult = () => Promise.reject(new Error('EPIPE'));
  });
  await failing.group.protect();
  await waitFor('the end', () => failing.group.core.phase.kind === 'unprotected');
  t.equal(failing.natives[0]?.epochs, 3);
  const slow = scene((native) => {
    native.epochResult = () =>
      Promise.resolve({ ...epochStats(0), abandoned: true, reason: 'D state' });
  });
  await slow.group.protect();
  await waitFor('lagging', () => slow.group.core.phase.kind === 'lagging');
  await waitFor('going on', () => (slow.natives[0]?.epochs ?? 0) > 50);
  await slow.group.unprotect();
});
