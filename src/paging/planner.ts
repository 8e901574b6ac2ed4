/** Turns the policy's decisions into orders for the native side, turn by turn. */
import { systemClock, type Clock } from '../base/clock.js';
import type { PagingReport } from '../native/group.js';
import { firstPagingState, nextPagingOrder, parseRam, type PagingOrder } from './policy.js';

/** undefined: the replica holds everything. Throws ERR_USAGE for a setting that is none. */
export function pagingPlanner(
  ram: string,
  coldAfterMs: number,
  clock: Pick<Clock, 'nowMs'> = systemClock,
): ((report: PagingReport) => PagingOrder) | undefined {
  const setting = parseRam(ram, coldAfterMs);
  if (setting.kind === 'all') return undefined;
  let state = firstPagingState;
  let lastMs = clock.nowMs();
  return (report) => {
    const nowMs = clock.nowMs();
    const elapsedMs = nowMs - lastMs;
    lastMs = nowMs;
    const seen = { ...report, samplePeriodMs: report.periodUs / 1000, elapsedMs };
    const next = nextPagingOrder(setting, state, seen);
    state = next.state;
    return next.order;
  };
}
