/**
 * How often a group takes an epoch. Pure: measured costs go in, the next interval and the reason
 * for it come out. The interval asked for is stretched until what epochs cost the primary fits its
 * overhead budget; a pause above the limit pulls it back, as far as the budget allows.
 */
import { formatMs, formatPercent, formatUs } from '../base/units.js';

export interface PaceTargets {
  readonly intervalMs: number;
  /** Share of its time that the primary may lose, 0 to 1. */
  readonly overhead: number;
  readonly maxPauseMs: number;
}

export interface EpochCost {
  readonly pauseUs: number;
  /** That it stood still beside the pause. */
  readonly throttledUs?: number;
  readonly cpuUs: number;
  readonly dirtyPages: number;
  /** It took what it took and is to be taken once more. */
  readonly abandoned: boolean;
  /** From the start of the epoch before to the start of this one. */
  readonly elapsedMs: number;
}

/** What decided: the user's interval, the budget, the pause limit or the longest interval. */
export type PaceBound = 'asked' | 'budget' | 'pause' | 'ceiling';

export interface Pace {
  readonly intervalMs: number;
  readonly bound: PaceBound;
  readonly why: string;
  /** Smoothed cost of one epoch to the primary. */
  readonly costUs: number;
  /** Share of its time that the primary lost over the last interval. */
  readonly overheadUsed: number;
}

/** Stretched no further: a replica older than this is of little use. */
export const intervalMsMax = 60_000;
/** Never more often than this, however short the pauses asked for. */
export const intervalMsMin = 10;

/**
 * First write to a page after it was armed: 0.7 to 3 us were measured, 1.65 us of processor time on
 * a virtual machine, all of it the primary's. What it then misses in caches comes on top.
 */
const writeFaultUs = 2;

/** To write, copy and apply a page, in all. */
const pageUs = 5;

/** One epoch's outlier moves the interval by at most these factors; written pages are none. */
const growthMax = 4;
const shrinkMax = 2;
const smoothing = 0.5;

export function firstPace(targets: PaceTargets): Pace {
  return {
    intervalMs: targets.intervalMs,
    bound: 'asked',
    why: 'as asked; no epoch measured yet',
    costUs: 0,
    overheadUsed: 0,
  };
}

/**
 * What an epoch took from the primary: the pause, its own write faults, and our copying beside it,
 * which takes a processor away from it where there are few (`processors`).
 */
export function costUs(cost: EpochCost, processors: number): number {
  const stoodUs = cost.pauseUs + (cost.throttledUs ?? 0);
  const besideUs = Math.max(0, cost.cpuUs - stoodUs);
  return stoodUs + cost.dirtyPages * writeFaultUs + besideUs * Math.min(1, 2 / processors);
}

export function nextPace(
  targets: PaceTargets,
  pace: Pace,
  cost: EpochCost,
  processors: number,
): Pace {
  const measuredUs = costUs(cost, processors);
  const smoothUs = smoothCost(pace.costUs, measuredUs, cost.abandoned);
  // What was spent is paid back before more is: a longer interval dirties more pages, so an epoch
  // that cost too much says that the next one will too.
  const budgetMs = Math.max(smoothUs, measuredUs) / 1000 / targets.overhead;
  const wanted = choose(targets, pace, cost.pauseUs, budgetMs);
  const pagesMs = (cost.dirtyPages * pageUs) / 1000 / targets.overhead;
  const intervalMs = Math.min(
    Math.max(wanted.intervalMs, pace.intervalMs / shrinkMax),
    Math.max(pace.intervalMs * growthMax, pagesMs),
  );
  const overheadUsed = cost.elapsedMs > 0 ? measuredUs / 1000 / cost.elapsedMs : 0;
  const why = explain(targets, wanted.bound, { smoothUs, budgetMs, pauseUs: cost.pauseUs });
  return { intervalMs, bound: wanted.bound, why, costUs: smoothUs, overheadUsed };
}

/** An abandoned epoch tells nothing of what a whole one costs, unless it was more. */
function smoothCost(beforeUs: number, measuredUs: number, abandoned: boolean): number {
  if (beforeUs === 0) return measuredUs;
  if (abandoned) return Math.max(beforeUs, measuredUs);
  return beforeUs + (measuredUs - beforeUs) * smoothing;
}

function choose(
  targets: PaceTargets,
  pace: Pace,
  pauseUs: number,
  budgetMs: number,
): { intervalMs: number; bound: PaceBound } {
  if (budgetMs > intervalMsMax) return { intervalMs: intervalMsMax, bound: 'ceiling' };
  const pauseLimitUs = targets.maxPauseMs * 1000;
  if (pauseUs > pauseLimitUs) {
    // Fewer pages are dirty after a shorter interval, and the pause is made of them.
    const shorterMs = Math.max(intervalMsMin, pace.intervalMs * (pauseLimitUs / pauseUs));
    if (shorterMs > budgetMs) return { intervalMs: shorterMs, bound: 'pause' };
  }
  if (budgetMs > targets.intervalMs) return { intervalMs: budgetMs, bound: 'budget' };
  return { intervalMs: targets.intervalMs, bound: 'asked' };
}

function explain(
  targets: PaceTargets,
  bound: PaceBound,
  seen: { smoothUs: number; budgetMs: number; pauseUs: number },
): string {
  const cost = `an epoch costs the primary ${formatUs(seen.smoothUs)}`;
  const budget = formatPercent(targets.overhead);
  const overPause =
    seen.pauseUs > targets.maxPauseMs * 1000
      ? `; the last pause of ${formatUs(seen.pauseUs)} is over the limit of ` +
        `${formatMs(targets.maxPauseMs)}, which the budget does not let shrink`
      : '';
  switch (bound) {
    case 'asked':
      return `as asked: ${cost}, within its budget of ${budget}`;
    case 'budget':
      return (
        `stretched from ${formatMs(targets.intervalMs)}: ${cost}, ` +
        `which fits a budget of ${budget} at ${formatMs(seen.budgetMs)}${overPause}`
      );
    case 'pause':
      return (
        `shortened: the last pause of ${formatUs(seen.pauseUs)} is over the limit of ` +
        formatMs(targets.maxPauseMs)
      );
    case 'ceiling':
      return (
        `at the longest interval of ${formatMs(intervalMsMax)}: ${cost}, ` +
        `more than its budget of ${budget}${overPause}`
      );
  }
}
