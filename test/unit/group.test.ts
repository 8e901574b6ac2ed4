/** The drive of one group, on a native side that does what the test says. */
import t from 'tap';
import { protectDefaults } from '../../src/api/schema.js';
import type { Clock } from '../../src/base/clock.js';
import { Group } from '../../src/capture/group.js';
import type { Announcement, GroupHost, GroupSpec } from '../../src/capture/group-spec.js';
import { newGroup } from '../../src/capture/group-state.js';
import type {
  ReplicaParts,
  EpochStats,
  NativeGroup,
  NativeGroupEvent,
  NativeGroupOptions,
  PagingReport,
  PromotionReport,
  StartReport,
} from '../../src/native/group.js';
import type { KeeperStatus } from '../../src/native/keeper-status.js';
import { report } from '../support/promotion-report.js';

/** A native group that does what the test says. */
class ScriptedNative implements NativeGroup {
  readonly options: NativeGroupOptions;
  readonly emit: (event: NativeGroupEvent) => void;
  epochs = 0;
  stopped = 0;
  loss = '';
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
  inspect(): Promise<never> {
    return Promise.reject(new Error('this group has no paging'));
  }
  checkpoint(): Promise<never> {
    return Promise.reject(new Error('this group has no store'));
  }
  page(): Promise<PagingReport> {
    return Promise.reject(new Error('this group has no paging'));
  }
  promote(): Promise<PromotionReport> {
    return this.promoteResult();
  }
  stop(): Promise<string> {
    this.stopped++;
    return Promise.resolve(this.loss);
  }
  counters(): Record<string, number> {
    return { epochs: this.epochs };
  }
  join(): boolean {
    return true;
  }
  drill(): boolean {
    return true;
  }
  leaveOut(): void {
    return;
  }
  recorded(): void {
    return;
  }
  parts(): ReplicaParts {
    const replica = { node: '', epoch: this.epochs, residentBytes: 0 };
    return { holderPid: 0, stagingBytes: 0, replicas: [{ ...replica, state: 'in sync' }] };
  }
}

function epochStats(epoch: number): EpochStats {
  return {
    epoch,
    pauseUs: 200,
    copyUs: 10,
    commitUs: 10,
    throttledUs: 0,
    cpuUs: 300,
    dirtyPages: 3,
    zeroPages: 0,
    bytes: 12_288,
    precopyRounds: 1,
    abandoned: false,
    mappedBytes: 1 << 20,
    primaryBytes: 5 << 20,
    residentBytes: 1 << 19,
    coldBytes: 0,
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
  ...protectDefaults,
  name: 'a',
  stdio: null,
  pidfile: undefined,
  onPromote: undefined,
  onFence: undefined,
  vip: undefined,
  store: undefined,
  storeId: '0123456789abcdef',
  owner: { uid: 0, gid: 0, groups: [] },
};

function scene(
  prepare: (native: ScriptedNative) => void = () => undefined,
  outside: Partial<GroupHost> = {},
) {
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
    announceLeft: () => undefined,
    announce: (_spec, what) => void announced.push(what),
    store: {
      pagerPath: '/p',
      directory: '/store',
      keyPath: '/k',
      bytesMax: 1,
      accessTracker: 'auto',
      allowMemoryFileSystems: false,
    },
    planPaging: () => undefined,
    forgetStore: silent,
    ...outside,
  };
  return { group: new Group(spec, host, newGroup(1000, 1, 3)), natives, notes, announced };
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
  t.same(notes, ['protected', 'died', 'promoted', 'protected']);
  await group.shutdown();
  t.equal(natives[1]?.stopped, 1);
  t.equal(group.core.phase.kind, 'protected', 'its record stays for the next daemon');
});

t.test('what ends before it is protected again says how it ended', async (t) => {
  let asked = 0;
  const keeper = {
    state: 'promoted',
    pid: 1,
    hostPid: 2000,
    epoch: 1,
    lazyPages: 0,
    coldPages: 0,
    damagedPages: 0,
    waitingFaults: 0,
    waitingUs: 0,
    refillUs: 0,
    storeTrouble: '',
  };
  const { group, natives } = scene(
    (native) => {
      if (native.options.generation === 1) return;
      native.startResult = () => Promise.reject(new Error('No such process'));
    },
    {
      processAlive: () => false,
      // The keeper needs a moment to reap it.
      askKeeper: () =>
        Promise.resolve({ ...keeper, exited: ++asked > 2, status: 256 } as KeeperStatus),
    },
  );
  await group.protect();
  natives[0]?.emit({ type: 'died', cause: 'sigkill', signal: 9 });
  natives[0]?.emit({ type: 'promoted', ...report });
  natives[0]?.emit({ type: 'drained', us: 1, pages: 0 });
  await waitFor('the end', () => group.core.phase.kind === 'ended');
  t.match(group.core.phase, {
    reason: 'it exited with status 1 before it was protected again',
  });
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

t.test('what is over says why it cannot be acted on, and what to do', async (t) => {
  const { group } = scene();
  await group.protect();
  await group.detach();
  const again = { code: 'ERR_NO_REPLICA', advice: /replpage protect 1000 --name a/ };
  await t.rejects(group.promote(), again);
  await t.rejects(group.detach(), again);
  group.gone();
  await t.rejects(group.promote(), { code: 'ERR_ENDED', message: /ended while it was detached/ });
});

t.test('a tracker that the kernel lacks is refused with what to do', async (t) => {
  const call = 'track memory by soft-dirty bits';
  const lacking = Object.assign(new Error(`${call}: Operation not supported`), {
    code: 'EOPNOTSUPP',
    syscall: call,
  });
  const { group } = scene((native) => (native.startResult = () => Promise.reject(lacking)));
  await t.rejects(group.protect(), {
    code: 'ERR_REFUSED',
    message:
      'cannot protect process 1000: track memory by soft-dirty bits: Operation not supported',
    advice: /--tracker auto/,
  });
});

t.test('unprotecting during the first copy is told to whoever protects', async (t) => {
  const { group } = scene((native) => (native.startResult = () => new Promise(() => undefined)));
  const waiting = group.protect();
  await group.unprotect();
  await t.rejects(waiting, { code: 'ERR_ENDED', message: /was unprotected meanwhile/ });
});

t.test('a process that is lost while it is let go is not told as let go', async (t) => {
  for (const doing of ['unprotect', 'detach'] as const) {
    const { group, natives, notes } = scene();
    await group.protect();
    const [native] = natives;
    if (!native) throw new Error('no native group');
    native.loss = 'the keeper fetched nothing';
    await t.rejects(group[doing](), {
      code: 'ERR_ENDED',
      message: `cannot ${doing} a: the keeper fetched nothing`,
    });
    t.equal(native.stopped, 1);
    t.ok(notes.includes('lost'));
  }
});
