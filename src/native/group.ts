/**
 * What the native side of one group takes, gives and reports. One tracer thread stands behind each
 * NativeGroup; a call is one whole operation, and pages never come up here. Rejections are Errors
 * with `{code, errno?, syscall?, pid?, address?, path?}`; what cannot be replicated has the code
 * ERR_REFUSED and a list `refusals`.
 */

import type { NativeCheckpointReport, NativeCheckpointRequest } from './checkpoint.js';
import type { NativePlace } from './standby.js';

export type AttachMode = 'always' | 'epochs';
export type OnExit = 'end' | 'promote';
export type FileRule = 'refuse' | 'keep';
export type TrackerChoice = 'auto' | 'uffd-wp' | 'soft-dirty';

/** Of a replica and its keeper, wherever it comes from. */
export interface NativeReplicaOptions {
  readonly name: string;
  readonly generation: number;
  readonly keeperPath: string;
  /** The keeper listens on `<runtimeDir>/keepers/<name>.<generation>.sock`. */
  readonly runtimeDir: string;
  readonly spillDir: string;
  /** Where standard output that leads outside the group goes; null is /dev/null. */
  readonly stdio: string | null;
  /** Of whoever asked: may trace the processes, and `stdio` is opened with these rights. */
  readonly uid: number;
  readonly gid: number;
  readonly groups: readonly number[];
  readonly files: FileRule;
  /** The group's service address, ADDRESS/PREFIX@INTERFACE; null: it has none. */
  readonly vip: string | null;
  readonly stagingBytesMax: number;
  readonly spillBytesMax: number;
}

export interface NativeGroupOptions extends NativeReplicaOptions {
  readonly pid: number;
  /** Clock ticks since boot, from /proc/PID/stat; empty where it is not known. */
  readonly startTime: string;
  readonly attach: AttachMode;
  readonly onExit: OnExit;
  /** Crash promotions still allowed. */
  readonly retriesLeft: number;
  /** To wait before the next crash is answered by a promotion. */
  readonly crashDelayMs: number;
  /** Until everything stands still. */
  readonly freezeDeadlineUs: number;
  /** Until everything runs again; an epoch that would take longer is given up. */
  readonly maxPauseUs: number;
  readonly tracker: TrackerChoice;
  /** null: the replica holds everything. */
  readonly paging: NativePagingOptions | null;
  /** Of its replicas, by rank. */
  readonly homes: readonly NativeHome[];
  /** A commit waits until recorded() was called for whoever is out. */
  readonly recordsOuts: boolean;
}

export interface NativeHome {
  /** Its name; empty: this machine. */
  readonly node: string;
  /** null: this machine. */
  readonly place: NativePlace | null;
}

export type AccessTrackerChoice = 'auto' | 'page-walk' | 'idle-bitmap' | 'write-recency';

export interface NativePagingOptions {
  readonly pagerPath: string;
  /** Directory of the page store. */
  readonly store: string;
  /** Whether a store that cannot be opened makes start() fail, with ERR_STORE. */
  readonly mustOpen: boolean;
  /** Whether the store is opened with the owner's rights instead of ours. */
  readonly asOwner: boolean;
  /** Of the store's key; made where there is none; empty: pages are not encrypted. */
  readonly keyPath: string;
  /** 16 hexadecimal digits, of this protection and no other. */
  readonly groupId: string;
  readonly storeBytesMax: number;
  readonly coldAfterMs: number;
  readonly accessTracker: AccessTrackerChoice;
  /** For tests: stores that do not outlast a loss of power. */
  readonly allowMemoryFileSystems: boolean;
}

/** What is to be done until the next turn. Ages are in samples since the last touch. */
export interface PagingOrder {
  readonly evictAge: number;
  readonly evictPagesMax: number;
  readonly bringBackAge: number;
  readonly bringBackPagesMax: number;
  /** Whether or not a sample is due. */
  readonly sampleNow?: boolean;
}

export type StoreState = 'opening' | 'ok' | 'full' | 'hung' | 'failing';

export interface PagingReport {
  readonly tracker: string;
  readonly samples: number;
  readonly sampleUs: number;
  readonly periodUs: number;
  /** Of one processor. */
  readonly sampleShare: number;
  /** Of private anonymous memory, as of the last epoch. */
  readonly residentBytes: number;
  readonly coldBytes: number;
  readonly absentBytes: number;
  readonly pendingBytes: number;
  /** Resident, and not locked. */
  readonly candidateBytes: number;
  /** Candidates, in pages, by age; the last entry: that old or older. */
  readonly ages: readonly number[];
  /** Cold pages that were touched since, likewise. */
  readonly touchedAgain: readonly number[];
  readonly tableBytes: number;
  readonly store: StoreState;
  readonly trouble: string;
  readonly storeBytes: number;
  readonly storeSegments: number;
  readonly writtenBytes: number;
  readonly evictedBytes: number;
  readonly broughtBackBytes: number;
  /** Written anew to empty sparse segments of the store. */
  readonly movedBytes: number;
  readonly pagerCpuUs: number;
  readonly pagerPid: number;
}

export interface StartReport {
  readonly epoch: number;
  readonly tracker: string;
  readonly copiedBytes: number;
  readonly copyUs: number;
  readonly warnings: readonly string[];
}

export interface EpochStats {
  readonly epoch: number;
  /** From the first thread stopped to the last one let go, of the longest stop. */
  readonly pauseUs: number;
  /** That it stood still beside that, since it wrote faster than could be copied. */
  readonly throttledUs: number;
  readonly copyUs: number;
  readonly commitUs: number;
  /** Processor time that this epoch took on our side. */
  readonly cpuUs: number;
  readonly dirtyPages: number;
  readonly zeroPages: number;
  readonly bytes: number;
  readonly precopyRounds: number;
  readonly abandoned: boolean;
  readonly reason?: string;
  readonly mappedBytes: number;
  /** Memory of the primary, and of its replica. */
  readonly primaryBytes: number;
  readonly residentBytes: number;
  /** In the page store only. */
  readonly coldBytes: number;
  readonly threads: number;
  readonly processes: number;
}

export interface PromotionReport {
  readonly epoch: number;
  /** As the program sees it. */
  readonly pid: number;
  readonly hostPid: number;
  /** True when it was taken from the dying process: nothing is lost. */
  readonly exact: boolean;
  readonly decisionToRunUs: number;
  readonly deathToRunUs: number;
  /** Pages still to be fetched from the dying process. */
  readonly lazyPages: number;
  /** Of a process that was killed; empty or absent: it is exact, or was not to be. */
  readonly whyNotExact?: string;
  readonly keeperSocket: string;
  /** Of the replica; empty or absent: this machine. */
  readonly node?: string;
}

export type DeathCause = 'sigkill' | 'signal' | 'crash' | 'exit';

export type NativeGroupEvent =
  | { readonly type: 'progress'; readonly bytes: number; readonly bytesTotal: number }
  | {
      readonly type: 'died';
      readonly cause: DeathCause;
      readonly signal?: number;
      readonly status?: number;
    }
  | ({ readonly type: 'promoted' } & PromotionReport)
  | { readonly type: 'drained'; readonly us: number; readonly pages: number }
  | {
      readonly type: 'ended';
      readonly reason: string;
      readonly signal?: number;
      readonly status?: number;
    }
  | { readonly type: 'unprotected'; readonly reason: string }
  /** One of several is lost; a commit waits for recorded() where that was asked for. */
  | { readonly type: 'replicaOut'; readonly node: string; readonly why: string }
  | { readonly type: 'replicaInSync'; readonly node: string; readonly epoch: number }
  | ({ readonly type: 'drilled' } & NativeDrill);

/** What came of a replica that was tried out. */
export interface NativeDrill {
  /** Empty: this machine. */
  readonly node: string;
  /** 0: it got none. */
  readonly epoch: number;
  /** Empty: it would run. */
  readonly problem: string;
  /** Until its first instruction. */
  readonly promoteUs: number;
  /** Of the replica in sync there: found to be the primary's. */
  readonly comparedPages: number;
  readonly threads: number;
  /** Threads that got to a system call, which was not executed; the others still computed. */
  readonly calls: number;
}

/** Pages of a part of a mapping. */
export interface PageCounts {
  /** Touched in the last samples. */
  readonly hot: number;
  /** In the replica's RAM besides. */
  readonly warm: number;
  /** In the page store only. */
  readonly cold: number;
  readonly absent: number;
}

export interface NativeMapping {
  /** Process in the group's own PID namespace. */
  readonly pid: number;
  readonly start: number;
  readonly end: number;
  readonly kind: string;
  readonly path: string;
  /** Equal parts of it, ascending; the last may be shorter. */
  readonly cells: readonly PageCounts[];
}

/** What a replica is made of at the moment. */
export interface ReplicaParts {
  /** Of the holder, below which the keeper and the replica are; 0: none was started. */
  readonly holderPid: number;
  /** Of the staging memory, what takes RAM: the daemon's and the keeper's are the same. */
  readonly stagingBytes: number;
  /** By rank. */
  readonly replicas: readonly NativeReplica[];
}

export interface NativeReplica {
  /** Empty: this machine. */
  readonly node: string;
  readonly state: 'building' | 'joining' | 'in sync' | 'out';
  /** Committed last. */
  readonly epoch: number;
  readonly residentBytes: number;
}

export interface NativeGroup {
  start(): Promise<StartReport>;
  epoch(): Promise<EpochStats>;
  /** A turn of paging, now and then between epochs. */
  page(order: PagingOrder): Promise<PagingReport>;
  /** Private anonymous mappings in at most so many parts each. */
  inspect(cells: number): Promise<readonly NativeMapping[]>;
  /** Completes the page store with the last epoch; epochs wait meanwhile. */
  checkpoint(request: NativeCheckpointRequest): Promise<NativeCheckpointReport>;
  /** On that node (empty: this machine), else on the best. */
  promote(node?: string): Promise<PromotionReport>;
  /** One more replica; false: one is on its way already. What comes of it is told by an event. */
  join(rank: number, home: NativeHome): boolean;
  /** One that is tried out for so long at most, under that name; false as by join(). */
  drill(name: string, home: NativeHome, runUs: number): boolean;
  /** The replica on that node is not to be relied on: replicaOut follows. */
  leaveOut(node: string, why: string): void;
  /** The replica on that node is recorded to be out. */
  recorded(node: string): void;
  /**
   * Detaches; the primary, or what was promoted, runs on. A copy under way is cut short. Resolves to
   * why what was promoted was lost while it still lacked memory; '' when it runs on.
   */
  stop(): Promise<string>;
  counters(): Record<string, number>;
  parts(): ReplicaParts;
}
