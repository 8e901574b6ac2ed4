/** Turns the policy's decisions into orders for the native side, turn by turn. */
import type { PagingOrder, PagingReport } from '../native/group.js';

const pageBytes = 4096;

export function pagingPlanner(
  ram: string,
  coldAfterMs: number,
): ((report: PagingReport) => PagingOrder) | undefined {
  if (ram === 'all') return undefined;
  return (report) => {
    const perSample = Math.max(1, report.periodUs / 1000);
    const age = Math.max(1, Math.min(254, Math.ceil(coldAfterMs / perSample)));
    void pageBytes;
    return { evictAge: age, evictPagesMax: 8192, bringBackAge: 1, bringBackPagesMax: 1024 };
  };
}
