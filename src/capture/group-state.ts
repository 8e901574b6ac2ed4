/**
 * The life of one group as a pure machine: `step(group, event)` gives the next group and what to do.
 * The shell in group.ts carries the effects out and feeds their outcome back as events.
 *
 *   protecting ---- started ----> protected <---- epoch / abandoned x5 ----> lagging
 *   protecting ---- startFailed ----> failed (first time) | promoted, again later | unprotected
 *   protected, lagging ---- died / promoteAsked ----> promoting
 *   promoting ---- promoted ----> promoted ---- drained ----> protecting (generation + 1)
 *   promoting ---- promoteFailed ----> protected
 *   any ---- ended ----> ended;  any ---- lost ----> unprotected | protecting (generation + 1)
 *   detached, unprotected ---- ended ----> ended
 *   any ---- detachAsked ----> detached;  any ---- unprotectAsked ----> removed
 *
 * Events of an older generation's native group are ignored.
 */
import { assertNever } from '../base/assert.js';
import { formatLoss } from '../base/units.js';
import type { DeathCause, PromotionReport } from '../native/group.js';

/** What was promoted. */
export interface Promotion extends PromotionReport {
  /** Of the process's time, that its replica does not know of; undefined where nobody can tell. */
  readonly lostMs?: number | undefined;
}

export type Phase =
  | {
      readonly kind: 'protecting';
      readonly bytes: number;
      readonly bytesTotal: number;
      /** Why the try before this one failed. */
      readonly reason?: string;
    }
  | { readonly kind: 'protected' }
  | { readonly kind: 'lagging'; readonly reason: string }
  | { readonly kind: 'promoting'; readonly reason: string }
  | { readonly kind: 'promoted'; readonly lazyPages: number }
  | { readonly kind: 'unprotected'; readonly reason: string }
  | { readonly kind: 'detached' }
  | { readonly kind: 'ended'; readonly reason: string }
  | { readonly kind: 'failed'; readonly reason: string }
  | { readonly kind: 'removed' };

export type PhaseName = Phase['kind'];

export interface GroupCore {
  readonly phase: Phase;
  /** Root process as this machine sees it; still that of the dead one in `ended`. */
  readonly hostPid: number;
  /** Of the replica that is being kept, or was last. */
  readonly generation: number;
  readonly epoch: number;
  /** Epochs given up one after the other. */
  readonly abandonedRun: number;
  readonly abandonedTotal: number;
  readonly committedTotal: number;
  /** Set by a crash or an exit, until its promotion is reported. */
  readonly crashed: boolean;
  readonly crashes: number;
  readonly retries: number;
  /** Failed tries to protect again what was promoted. */
  readonly failedStarts: number;
  readonly promotion: Promotion | undefined;
  /** Taken up again by a restarted daemon: a failed start is tried again, as after a promotion. */
  readonly resumed: boolean;
}

export type GroupEvent =
  | { readonly type: 'progress'; readonly bytes: number; readonly bytesTotal: number }
  | { readonly type: 'started'; readonly epoch: number }
  /** `patient`: what it takes may come back, so it is tried again without end. */
  | { readonly type: 'startFailed'; readonly reason: string; readonly patient?: boolean }
  | { readonly type: 'committed'; readonly epoch: number }
  | { readonly type: 'abandoned'; readonly reason: string }
  /** An epoch was begun and is not over after a long time. */
  | { readonly type: 'late'; readonly reason: string }
  | { readonly type: 'died'; readonly cause: DeathCause; readonly reason: string }
  | { readonly type: 'promoteAsked' }
  | { readonly type: 'promoted'; readonly report: Promotion }
  | { readonly type: 'promoteFailed'; readonly reason: string }
  | { readonly type: 'drained'; readonly us: number; readonly pages: number }
  | { readonly type: 'ended'; readonly reason: string }
  /** `again`: its replica's node was lost, and may be back soon. */
  | { readonly type: 'lost'; readonly reason: string; readonly again?: boolean }
  | { readonly type: 'detachAsked' }
  | { readonly type: 'unprotectAsked' };

export type GroupEffect =
  /** Starts a native group for `hostPid` at `generation`, after a delay. */
  | { readonly type: 'start'; readonly delayMs: number }
  | { readonly type: 'promote' }
  | { readonly type: 'stop' }
  /** Outsiders are told what runs now, and of which generation it is. */
  | {
      readonly type: 'announce';
      readonly report: PromotionReport;
      readonly generation: number;
      /** Of the promotion. */
      readonly reason: string;
    }
  | { readonly type: 'persist' }
  | { readonly type: 'note'; readonly what: string; readonly why: string };

export interface Step {
  readonly group: GroupCore;
  readonly effects: readonly GroupEffect[];
}

/** Epochs abandoned in a row that make a group `lagging`. */
export const laggingAfter = 5;
/** Tries to protect again what was promoted before it stays unprotected. */
export const startTriesMax = 5;

/** Before a replica is built anew whose node was lost, and the longest time between tries. */
const lostDelayMs = 1000;
const patientDelayMaxMs = 5000;

export function newGroup(hostPid: number, generation: number, retries: number): GroupCore {
  return {
    phase: { kind: 'protecting', bytes: 0, bytesTotal: 0 },
    hostPid,
    generation,
    epoch: 0,
    abandonedRun: 0,
    abandonedTotal: 0,
    committedTotal: 0,
    crashed: false,
    crashes: 0,
    retries,
    failedStarts: 0,
    promotion: undefined,
    resumed: false,
  };
}

export const retriesLeft = (group: GroupCore): number => Math.max(0, group.retries - group.crashes);

/** Before the n-th crash is answered by a promotion: at once, then 1 s, 2 s, 4 s ... 30 s. */
export function crashDelayMs(crashesSoFar: number): number {
  return crashesSoFar === 0 ? 0 : Math.min(30_000, 1000 * 2 ** (crashesSoFar - 1));
}

/** Over for good, or until the user acts: no native group stands behind these. */
export function isOver(phase: PhaseName): boolean {
  return ['unprotected', 'detached', 'ended', 'failed', 'removed'].includes(phase);
}

/** `protect` waits for its first epoch: a failure is the user's to hear, and nothing is kept. */
export function isFirstStart(group: GroupCore): boolean {
  return group.phase.kind === 'protecting' && group.promotion === undefined && !group.resumed;
}

const stay = (group: GroupCore): Step => ({ group, effects: [] });
const note = (what: string, why: string): GroupEffect => ({ type: 'note', what, why });

function leave(group: GroupCore, phase: Phase, what: string, why: string): Step {
  return {
    group: { ...group, phase },
    effects: [{ type: 'stop' }, { type: 'persist' }, note(what, why)],
  };
}

export function step(group: GroupCore, event: GroupEvent): Step {
  if (isOver(group.phase.kind)) return stepOver(group, event);
  switch (event.type) {
    case 'progress':
      if (group.phase.kind !== 'protecting') return stay(group);
      return stay({
        ...group,
        phase: { ...group.phase, bytes: event.bytes, bytesTotal: event.bytesTotal },
      });
    case 'started':
    case 'startFailed':
      return stepStart(group, event);
    case 'committed':
    case 'abandoned':
    case 'late':
      return stepEpoch(group, event);
    case 'died':
    case 'promoteAsked':
    case 'promoted':
    case 'promoteFailed':
    case 'drained':
      return stepPromotion(group, event);
    case 'ended':
      return leave(group, { kind: 'ended', reason: event.reason }, 'ended', event.reason);
    case 'lost':
      if (event.again === true && !isFirstStart(group)) return lostForNow(group, event.reason);
      return leave(
        group,
        { kind: 'unprotected', reason: event.reason },
        'unprotected',
        event.reason,
      );
    case 'detachAsked':
      return leave(group, { kind: 'detached' }, 'detached', 'asked for');
    case 'unprotectAsked':
      return leave(group, { kind: 'removed' }, 'unprotected', 'asked for');
    default:
      return assertNever(event);
  }
}

/** The process runs on; what its replica's node has of it stays there until there is a new one. */
function lostForNow(group: GroupCore, reason: string): Step {
  return {
    group: {
      ...group,
      phase: { kind: 'protecting', bytes: 0, bytesTotal: 0, reason: `unprotected: ${reason}` },
      generation: group.generation + 1,
      abandonedRun: 0,
      resumed: true,
    },
    effects: [
      { type: 'persist' },
      { type: 'stop' },
      { type: 'start', delayMs: lostDelayMs },
      note('unprotected for now', reason),
    ],
  };
}

function stepOver(group: GroupCore, event: GroupEvent): Step {
  const { kind } = group.phase;
  if (event.type === 'ended' && (kind === 'detached' || kind === 'unprotected')) {
    return leave(group, { kind: 'ended', reason: event.reason }, 'ended', event.reason);
  }
  // What else comes late is of no use.
  if (event.type === 'unprotectAsked' && group.phase.kind !== 'removed') {
    return leave(group, { kind: 'removed' }, 'removed', 'asked for');
  }
  return stay(group);
}

function stepStart(
  group: GroupCore,
  event: Extract<GroupEvent, { type: 'started' | 'startFailed' }>,
): Step {
  if (group.phase.kind !== 'protecting') return stay(group);
  if (event.type === 'started') {
    const next: GroupCore = {
      ...group,
      phase: { kind: 'protected' },
      epoch: event.epoch,
      failedStarts: 0,
      abandonedRun: 0,
      committedTotal: group.committedTotal + 1,
    };
    const why = `generation ${group.generation}, first epoch committed`;
    return { group: next, effects: [{ type: 'persist' }, note('protected', why)] };
  }
  if (isFirstStart(group)) {
    const phase: Phase = { kind: 'failed', reason: event.reason };
    return leave(group, phase, 'not protected', event.reason);
  }
  const failedStarts = group.failedStarts + 1;
  // What is refused is tried again too: it may pass, as a child that is about to end.
  if (failedStarts >= startTriesMax && event.patient !== true) {
    return leave(
      { ...group, failedStarts },
      { kind: 'unprotected', reason: event.reason },
      'unprotected',
      `could not protect it again: ${event.reason}`,
    );
  }
  const reason =
    event.patient === true
      ? `unprotected: ${event.reason}`
      : `try ${failedStarts} of ${startTriesMax} failed: ${event.reason}`;
  const delayMs = 500 * 2 ** Math.min(failedStarts, startTriesMax);
  // A new start never takes the number of one that may have left something behind.
  return {
    group: {
      ...group,
      phase: { kind: 'protecting', bytes: 0, bytesTotal: 0, reason },
      failedStarts,
      generation: group.generation + 1,
    },
    effects: [
      { type: 'stop' },
      {
        type: 'start',
        delayMs: event.patient === true ? Math.min(delayMs, patientDelayMaxMs) : delayMs,
      },
      // Said once, where it is tried without end.
      ...(event.patient === true && failedStarts > 1
        ? []
        : [note('protecting again later', event.reason)]),
    ],
  };
}

const countAbandoned = (group: GroupCore): GroupCore => ({
  ...group,
  abandonedRun: group.abandonedRun + 1,
  abandonedTotal: group.abandonedTotal + 1,
});

function stepEpoch(
  group: GroupCore,
  event: Extract<GroupEvent, { type: 'committed' | 'abandoned' | 'late' }>,
): Step {
  const { kind } = group.phase;
  if (kind !== 'protected' && kind !== 'lagging') return stay(group);
  if (event.type === 'committed') {
    const next: GroupCore = {
      ...group,
      phase: { kind: 'protected' },
      epoch: event.epoch,
      abandonedRun: 0,
      committedTotal: group.committedTotal + 1,
    };
    const caughtUp = note('caught up', `after ${group.abandonedRun} abandoned epochs`);
    return { group: next, effects: kind === 'lagging' ? [caughtUp] : [] };
  }
  const counted = event.type === 'late' ? group : countAbandoned(group);
  if (event.type === 'abandoned' && counted.abandonedRun < laggingAfter) return stay(counted);
  const lagging: GroupCore = { ...counted, phase: { kind: 'lagging', reason: event.reason } };
  return { group: lagging, effects: kind === 'lagging' ? [] : [note('lagging', event.reason)] };
}

type PromotionEvent = Extract<
  GroupEvent,
  { type: 'died' | 'promoteAsked' | 'promoted' | 'promoteFailed' | 'drained' }
>;

function stepPromotion(group: GroupCore, event: PromotionEvent): Step {
  const { kind } = group.phase;
  switch (event.type) {
    case 'died': {
      // Either may happen again at once, so both are answered a few times only.
      const crashed = event.cause === 'crash' || event.cause === 'exit';
      const dying = { ...group, crashed };
      const effects = [note('died', event.reason)];
      // Before the first epoch there is nothing to promote; `ended` follows.
      if (kind !== 'protected' && kind !== 'lagging') return { group: dying, effects };
      return { group: { ...dying, phase: { kind: 'promoting', reason: event.reason } }, effects };
    }
    case 'promoteAsked':
      if (kind !== 'protected' && kind !== 'lagging') return stay(group);
      return {
        group: { ...group, phase: { kind: 'promoting', reason: 'asked for' } },
        effects: [{ type: 'promote' }],
      };
    case 'promoted':
      return promoted(group, event.report);
    case 'promoteFailed':
      if (kind !== 'promoting') return stay(group);
      return {
        group: { ...group, phase: { kind: 'protected' } },
        effects: [note('promotion failed', event.reason)],
      };
    case 'drained': {
      if (kind !== 'promoted') return stay(group);
      const why = `${event.pages} pages came from the dying process`;
      return again(group, event.pages > 0 ? [note('drained', why)] : []);
    }
    default:
      return assertNever(event);
  }
}

function promoted(group: GroupCore, report: Promotion): Step {
  if (group.phase.kind === 'promoted') return stay(group);
  const next: GroupCore = {
    ...group,
    phase: { kind: 'promoted', lazyPages: report.lazyPages },
    hostPid: report.hostPid,
    epoch: report.epoch,
    crashes: group.crashes + (group.crashed ? 1 : 0),
    crashed: false,
    promotion: report,
  };
  const exactly = formatLoss(report);
  const reason = group.phase.kind === 'promoting' ? group.phase.reason : 'it died';
  const effects: GroupEffect[] = [
    { type: 'persist' },
    { type: 'announce', report, generation: group.generation, reason },
    note('promoted', `pid ${report.pid} runs on as host pid ${report.hostPid}, ${exactly}`),
  ];
  // Its pages must all be its own before it can be tracked again (one userfaultfd a mapping), and
  // the old process must be let go: `drained` says so, also where no page was left behind.
  return { group: next, effects };
}

function again(group: GroupCore, effects: readonly GroupEffect[]): Step {
  return {
    group: {
      ...group,
      phase: { kind: 'protecting', bytes: 0, bytesTotal: 0 },
      generation: group.generation + 1,
      abandonedRun: 0,
    },
    effects: [...effects, { type: 'persist' }, { type: 'stop' }, { type: 'start', delayMs: 0 }],
  };
}
