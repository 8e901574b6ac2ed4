/** Feeds the policy of one group what its native side reports, turn by turn. */
import type { Clock } from '../base/clock.js';
import type { PagingOrder, PagingReport } from '../native/group.js';
import { firstPagingState, nextPagingOrder, parseRam } from './policy.js';

/** undefined: everything stays in RAM. `ram`: all, hot, or a share such as 30%. */
export function pagingPlanner(
  ram: string,
  coldAfterMs: number,
  clock: Clock,
): ((report: PagingReport) => PagingOrder) | undefined {
  const setting = parseRam(ram, coldAfterMs);
  if (setting.kind === 'all') return undefined;
  let state = firstPagingState;
  let lastMs = clock.nowMs();
  return (report) => {
    const nowMs = clock.nowMs();
    const { ages, touchedAgain, residentBytes, coldBytes, pendingBytes, evictedBytes } = report;
    const next = nextPagingOrder(setting, state, {
      ages,
      touchedAgain,
      residentBytes,
      coldBytes,
      pendingBytes,
      evictedBytes,
      samplePeriodMs: report.periodUs / 1000,
      store: report.store,
      elapsedMs: nowMs - lastMs,
    });
    lastMs = nowMs;
    state = next.state;
    return next.order;
  };
}
