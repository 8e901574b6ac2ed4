/** What a group does about paging: turns between its epochs, and notes of how the store fares. */
import type { Clock } from '../base/clock.js';
import { describe } from '../base/errors.js';
import type {
  NativeGroup,
  NativePagingOptions,
  PagingOrder,
  PagingReport,
} from '../native/group.js';
import type { KeeperStatus } from '../native/keeper-status.js';
import type { Evictions } from './evict-request.js';
import type { GroupHost, GroupSpec, StorePlace } from './group-spec.js';

/** Short enough that evicting keeps the store busy. */
const turnMs = 250;
/** While somebody waits for pages to leave. */
const evictingTurnMs = 20;
const nothing: PagingOrder = {
  evictAge: 0,
  evictPagesMax: 0,
  bringBackAge: 0,
  bringBackPagesMax: 0,
};

/** null: the replica holds everything. */
export function pagingOptions(
  spec: GroupSpec,
  place: StorePlace,
  mustOpen: boolean,
): NativePagingOptions | null {
  return spec.ram === 'all' ? null : storeOptions(spec, place, mustOpen);
}

/** Where the group's directory in a page store is, whether or not it has paging. */
export function storeOptions(
  spec: GroupSpec,
  place: StorePlace,
  mustOpen: boolean,
): NativePagingOptions {
  const { directory, bytesMax, ...rest } = place;
  return {
    ...rest,
    store: spec.store ?? directory,
    // What was promoted is protected again all the same: it only costs more RAM.
    mustOpen,
    asOwner: spec.store !== undefined,
    groupId: spec.storeId,
    storeBytesMax: bytesMax,
    coldAfterMs: spec.coldAfterMs,
  };
}

export interface TurnShell {
  goOn(): boolean;
  /** `why`: what is done about it. */
  report(paging: PagingReport, why: string): void;
  readonly signal: AbortSignal;
  readonly evictions: Evictions;
}

/** Until the group moves on. Never in the way of an epoch: the native side does one at a time. */
export async function takePagingTurns(
  host: GroupHost,
  spec: GroupSpec,
  native: NativeGroup,
  shell: TurnShell,
): Promise<void> {
  const plan = host.planPaging(spec);
  if (plan === undefined) return;
  const notes = new StoreNotes(host, spec.name);
  let order = nothing;
  let waitMs = turnMs;
  while (shell.goOn() && !shell.signal.aborted) {
    try {
      const report = await native.page(order);
      notes.trouble(report.trouble);
      const planned = plan(report);
      shell.report(report, planned.reason);
      const asked = shell.evictions.order(report);
      order = asked ?? planned;
      waitMs = asked === undefined ? turnMs : evictingTurnMs;
    } catch (error) {
      // Where the group itself is lost, its epochs tell.
      host.log.warn({ group: spec.name, reason: describe(error) }, 'a turn of paging failed');
    }
    await host.clock.sleep(waitMs, shell.signal);
  }
  shell.evictions.fail(`${spec.name} is not kept in step any more`);
}

/** After so long without an answer a page store counts as hung. */
const hungMs = 5000;

/** Sees that a refill does not get on, of a keeper that can tell only what its store has answered. */
export class RefillWatch {
  readonly #clock: Pick<Clock, 'nowMs'>;
  #left = 0;
  #sinceMs = 0;

  constructor(clock: Pick<Clock, 'nowMs'>) {
    this.#clock = clock;
  }

  /** What is wrong with the store; empty: nothing. */
  trouble(keeper: Pick<KeeperStatus, 'coldPages' | 'waitingUs' | 'storeTrouble'>): string {
    const nowMs = this.#clock.nowMs();
    if (keeper.coldPages !== this.#left) this.#sinceMs = nowMs;
    this.#left = keeper.coldPages;
    if (keeper.storeTrouble !== '' || keeper.coldPages === 0) return keeper.storeTrouble;
    const silentMs = Math.max(nowMs - this.#sinceMs, keeper.waitingUs / 1000);
    if (silentMs < hungMs) return '';
    return `the page store has not answered for ${Math.floor(silentMs / 1000)} s`;
  }
}

/** Tells each change once. */
export class StoreNotes {
  readonly #host: GroupHost;
  readonly #group: string;
  #kind = '';
  #damagedPages = 0;

  constructor(host: GroupHost, group: string) {
    this.#host = host;
    this.#group = group;
  }

  /** Empty: none. The same words with other numbers are no news. */
  trouble(now: string): void {
    const kind = now.replace(/\d+/g, '#');
    if (kind === this.#kind) return;
    this.#kind = kind;
    if (kind === '') this.#host.note(this.#group, 'page store works again', 'it answers as before');
    else this.#host.note(this.#group, 'page store in trouble', now);
  }

  damage(pages: number): void {
    if (pages <= this.#damagedPages) return;
    this.#damagedPages = pages;
    const why = `${pages} pages were damaged in the page store; touching one raises SIGBUS`;
    this.#host.note(this.#group, 'pages lost', why);
  }
}
