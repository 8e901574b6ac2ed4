/**
 * Looks after what was promoted until it can be protected again: its pages must all be its own, and
 * it may end meanwhile.
 */
import { describe } from '../base/errors.js';
import type { KeeperStatus } from '../native/keeper-status.js';
import { describeWaitStatus } from './death.js';
import type { GroupHost } from './group-spec.js';
import type { GroupCore, GroupEvent } from './group-state.js';
import { RefillWatch, StoreNotes } from './paging-turns.js';

const pollMs = 500;
/** Looks at a keeper that has no page left to fetch, before the native side is not waited for. */
const drainedPollsMax = 10;

export interface WatchedGroup {
  readonly signal: AbortSignal;
  /** undefined: it has moved on. */
  core(): GroupCore | undefined;
  /** A native group will tell when the dying process is let go. */
  isTold(): boolean;
  /** Whether pages are missing, and what there is to tell of them. */
  seen(missing: boolean, refill: KeeperStatus | undefined): void;
  /** What the dying process has given, once. */
  takeReleased(): { readonly us: number; readonly pages: number } | undefined;
  apply(event: GroupEvent): void;
}

/** The native side says when all pages are its own; the keeper says when it ended before. */
export async function watchPromoted(
  host: GroupHost,
  name: string,
  keeperSocket: string,
  group: WatchedGroup,
): Promise<void> {
  // A restarted daemon has no native group that would tell it.
  let drainedPolls = group.isTold() ? 0 : drainedPollsMax;
  const notes = new StoreNotes(host, name);
  const watch = new RefillWatch(host.clock);
  for (;;) {
    await host.clock.sleep(pollMs, group.signal);
    const core = group.core();
    if (group.signal.aborted || core?.phase.kind !== 'promoted') return;
    try {
      const status = await host.askKeeper(keeperSocket);
      const missing = status.lazyPages + status.coldPages > 0;
      const storeTrouble = watch.trouble(status);
      const told = missing || status.damagedPages > 0; // these stay so
      group.seen(missing, told ? { ...status, storeTrouble } : undefined);
      notes.trouble(storeTrouble);
      notes.damage(status.damagedPages);
      if (status.exited) {
        const how = describeWaitStatus(status.status ?? 0);
        group.apply({ type: 'ended', reason: `it ${how} after its promotion` });
        continue;
      }
      if (missing) continue;
      const released = group.takeReleased();
      if (released !== undefined) {
        group.apply({ type: 'drained', ...released });
      } else if (++drainedPolls > drainedPollsMax) {
        group.apply({ type: 'drained', us: 0, pages: core.phase.lazyPages });
      }
    } catch (error) {
      if (host.processAlive(core.hostPid)) continue;
      group.apply({ type: 'ended', reason: `it ended after its promotion: ${describe(error)}` });
    }
  }
}
