/** What the user asked for when protecting a group, and what the group needs from outside. */
import type { Clock } from '../base/clock.js';
import type { Log } from '../base/log.js';
import type {
  AttachMode,
  FileRule,
  NativeGroup,
  NativeGroupEvent,
  NativeGroupOptions,
  OnExit,
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

/** The daemon's side of a group. */
export interface GroupHost {
  readonly clock: Clock;
  readonly log: Log;
  readonly processors: number;
  readonly limits: GroupLimits;
  readonly paths: GroupPaths;
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
