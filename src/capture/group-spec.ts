/** What the user asked for when protecting a group, and what the group needs from outside. */
import type { Clock } from '../base/clock.js';
import type { Log } from '../base/log.js';
import type {
  AccessTrackerChoice,
  AttachMode,
  FileRule,
  NativeGroup,
  NativeGroupEvent,
  NativeGroupOptions,
  OnExit,
  PagingOrder,
  PagingReport,
  TrackerChoice,
} from '../native/group.js';
import type { KeeperStatus } from '../native/keeper-status.js';
import type { PaceTargets } from './pace-policy.js';

/** Whoever asked: hooks, files and output are opened with these rights, never the daemon's. */
export interface Owner {
  readonly uid: number;
  readonly gid: number;
  readonly groups: readonly number[];
}

export interface GroupSpec extends PaceTargets {
  readonly name: string;
  readonly attach: AttachMode;
  readonly onExit: OnExit;
  readonly files: FileRule;
  readonly retries: number;
  readonly tracker: TrackerChoice;
  /** What a replica holds in RAM: all, hot, or a share such as 30%. */
  readonly ram: string;
  /** Untouched for so long counts as cold. */
  readonly coldAfterMs: number;
  /** Directory of the page store, opened with the owner's rights; undefined: the daemon's. */
  readonly store: string | undefined;
  /** Of the group's directory in the page store: 16 hexadecimal digits, never used again. */
  readonly storeId: string;
  /** Of what was restored: the `storeId` that it had first. */
  readonly origin?: string | undefined;
  readonly stdio: string | null;
  readonly pidfile: string | undefined;
  readonly onPromote: string | undefined;
  readonly owner: Owner;
}

export interface GroupLimits {
  readonly freezeDeadlineUs: number;
  readonly stagingBytesMax: number;
  readonly spillBytesMax: number;
}

export interface GroupPaths {
  readonly keeperPath: string;
  readonly runtimeDir: string;
  readonly spillDir: string;
}

/** The daemon's page store. */
export interface StorePlace {
  readonly pagerPath: string;
  readonly directory: string;
  readonly keyPath: string;
  readonly bytesMax: number;
  readonly accessTracker: AccessTrackerChoice;
  readonly allowMemoryFileSystems: boolean;
}

/** Decides, turn by turn, what leaves a replica's RAM and what comes back. */
export type PagingPlanner = (report: PagingReport) => PagingOrder & { readonly reason: string };

/** The daemon's side of a group. */
export interface GroupHost {
  readonly clock: Clock;
  readonly log: Log;
  readonly processors: number;
  readonly limits: GroupLimits;
  readonly paths: GroupPaths;
  readonly store: StorePlace;
  /** undefined: the replica is to hold everything. */
  planPaging(spec: GroupSpec): PagingPlanner | undefined;
  /** Nothing will be read any more from the group's directory in the page store. */
  forgetStore(spec: GroupSpec): void;
  createNative(
    options: NativeGroupOptions,
    onEvent: (event: NativeGroupEvent) => void,
  ): NativeGroup;
  askKeeper(path: string): Promise<KeeperStatus>;
  processAlive(hostPid: number): boolean;
  /** Something happened that a user may want to know. */
  note(group: string, what: string, why: string): void;
  /** The group's record changed. */
  persist(): void;
  /** What runs now has another host pid: tell the outsiders that asked to be told. */
  announce(spec: GroupSpec, report: Announcement): void;
}

export interface Announcement {
  readonly pid: number;
  readonly hostPid: number;
  readonly generation: number;
  readonly epoch: number;
  readonly exact: boolean;
}
