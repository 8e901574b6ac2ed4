/** What the user asked for when protecting a group, and what the group needs from outside. */
import type { Clock } from '../base/clock.js';
import { ReplicationError } from '../base/errors.js';
import { formatLoss } from '../base/units.js';
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
  PromotionReport,
  TrackerChoice,
} from '../native/group.js';
import type { KeeperStatus } from '../native/keeper-status.js';
import type { NativePlace } from '../native/standby.js';
import type { PaceTargets } from './pace-policy.js';

export type ShipRule = 'mapped' | 'never';

/** Whoever asked: hooks, files and output are opened with these rights, never the daemon's. */
export interface Owner {
  readonly uid: number;
  readonly gid: number;
  readonly groups: readonly number[];
}

export interface GroupSpec extends PaceTargets {
  readonly name: string;
  /** Nodes that keep a replica, by rank, with commas between; undefined or "self": this one. */
  readonly to?: string | undefined;
  /** Whether programs and libraries that the node lacks are sent there. */
  readonly shipFiles: ShipRule;
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
  readonly onFence: string | undefined;
  /** Service address, ADDRESS/PREFIX@INTERFACE as the native side writes it. */
  readonly vip: string | undefined;
  readonly owner: Owner;
  /** A replica of it is tried out, and never promoted. */
  readonly drill?: true | undefined;
}

/** Of a replica that is tried out beside the others: nobody hears of it. */
export const drillSpec = (spec: GroupSpec): GroupSpec => ({
  ...spec,
  // No group can have such a name.
  ...{ name: `_${spec.name}`, stdio: null, vip: undefined, drill: true },
});

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

/** Replicas on other nodes. */
export interface PeerPlaces {
  /** Has that node expect a replica. Throws why not. */
  place(spec: GroupSpec, node: string, hostPid: number, generation: number): Promise<NativePlace>;
  /** Resolves to those of the nodes in sync that have not recorded it in time. */
  record(group: InSync): Promise<readonly string[]>;
  /** The replica that this node keeps of it is not wanted any more. */
  drop(spec: GroupSpec, node: string, generation: number): void;
  /** No replica is wanted any more. */
  end(spec: GroupSpec, generation: number): void;
}

/** Who of a group's replicas may be promoted. */
export interface InSync {
  readonly name: string;
  /** Of this protection: `storeId`. */
  readonly id: string;
  readonly generation: number;
  /** Nodes, with self for the primary's. */
  readonly inSync: readonly string[];
}

/** Where its replicas are to be, by rank: nodes, or self. */
export const homesOf = ({ to }: Pick<GroupSpec, 'to'>): readonly string[] =>
  to === undefined ? ['self'] : to.split(',');

/** Other nodes keep replicas of it. */
export const hasPeers = (spec: Pick<GroupSpec, 'to'>): boolean =>
  homesOf(spec).some((node) => node !== 'self');

export function peersOf({ peers }: Pick<GroupHost, 'peers'>): PeerPlaces {
  if (peers !== undefined) return peers;
  throw new ReplicationError('ERR_NO_CLUSTER', 'this node is in no cluster');
}

/** The daemon's side of a group. */
export interface GroupHost {
  readonly clock: Clock;
  readonly log: Log;
  readonly processors: number;
  readonly limits: GroupLimits;
  readonly paths: GroupPaths;
  readonly store: StorePlace;
  /** undefined: there are no other nodes. */
  readonly peers?: PeerPlaces;
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
  /** The group runs elsewhere, and not here any more. */
  announceLeft(spec: GroupSpec, report: Announcement): void;
}

export interface Announcement {
  readonly pid: number;
  readonly hostPid: number;
  readonly generation: number;
  readonly epoch: number;
  readonly exact: boolean;
  /** Why, in words. */
  readonly reason: string;
}

export function announcementOf(promoted: {
  readonly report: PromotionReport;
  readonly generation: number;
  readonly reason: string;
}): Announcement {
  const { generation, reason } = promoted;
  const { pid, hostPid, epoch, exact } = promoted.report;
  return { pid, hostPid, generation, epoch, exact, reason };
}

/** Why a group ends here: its replica was promoted on the node that keeps it. */
export function ranElsewhere(
  report: PromotionReport & { readonly lostMs: number | undefined },
): string {
  return `it runs on node ${report.node} since epoch ${report.epoch}, ${formatLoss(report)}`;
}
