/**
 * What travels over the local socket: requests, answers and events, with their checks. Keys and
 * units are stable; a new key may be added, none is renamed or removed.
 *
 *   GET  /v1/status                      -> StatusReport
 *   GET  /v1/groups/NAME                 -> GroupStatus, with its RAM measured anew
 *   GET  /v1/groups/NAME/pages           -> InspectedProcess[]
 *   POST /v1/groups                      ProtectRequest -> lines of ProtectLine
 *   POST /v1/groups/NAME/unprotect | detach  -> GroupStatus
 *   POST /v1/groups/NAME/promote[?to=NODE][&force=1] -> GroupStatus
 *   POST /v1/groups/NAME/evict           -> EvictReport
 *   POST /v1/groups/NAME/checkpoint[?keep=1] -> CheckpointReport
 *   POST /v1/checkpoints/remove RemovalRequest -> RemovalReport
 *   POST /v1/restore                     RestoreRequest -> RestoreReport
 *   GET  /v1/key                         -> KeyReport, for root alone
 *   GET  /v1/events?after=N[&follow=1]   -> lines of EventRecord
 *   GET  /v1/kernel                      -> KernelReport
 *
 * Errors are application/problem+json (RFC 9457) with a `code` of base/errors.ts.
 */
import type { Refusal } from '../base/errors.js';
import type { QuantileSummary } from '../base/quantiles.js';
import type { ReplicaStatus, StandbyStatus } from './replica-schema.js';
import {
  checkFields,
  isAbsolutePath,
  isBetween,
  isInteger,
  isOneOf,
  isText,
  type Check,
  type Fields,
} from './checks.js';

export type { ReplicaStatus, StandbyStatus };

export interface ProtectRequest {
  readonly pid: number;
  readonly name?: string | undefined;
  readonly intervalMs?: number | undefined;
  readonly overhead?: number | undefined;
  readonly maxPauseMs?: number | undefined;
  readonly attach?: 'always' | 'epochs' | undefined;
  readonly onExit?: 'end' | 'promote' | undefined;
  readonly files?: 'refuse' | 'keep' | undefined;
  readonly retries?: number | undefined;
  readonly tracker?: 'auto' | 'uffd-wp' | 'soft-dirty' | undefined;
  /** What a replica holds in RAM: all, hot, or a share of the primary's memory such as 30%. */
  readonly ram?: string | undefined;
  readonly coldAfterMs?: number | undefined;
  /** Absolute path of the page store; absent is the daemon's. */
  readonly store?: string | undefined;
  /** Absolute path; null is /dev/null; absent is a log file of the daemon's choice. */
  readonly stdio?: string | null | undefined;
  readonly pidfile?: string | undefined;
  readonly onPromote?: string | undefined;
  readonly onFence?: string | undefined;
  /** Service address: ADDRESS/PREFIX@INTERFACE. */
  readonly vip?: string | undefined;
  /** Nodes that keep a replica, by rank, with commas between; absent or "self": this one. */
  readonly to?: string | undefined;
  /** Instead of `to`: on so many other nodes. */
  readonly replicas?: number | undefined;
  /** Of programs and libraries that the node lacks. */
  readonly shipFiles?: string | undefined;
}

/** What holds where a request to protect does not say; `stdio` is then a file in the log folder. */
export const protectDefaults = {
  intervalMs: 100,
  overhead: 0.05,
  maxPauseMs: 50,
  attach: 'always',
  onExit: 'end',
  files: 'refuse',
  retries: 3,
  tracker: 'auto',
  ram: 'all',
  coldAfterMs: 30_000,
  shipFiles: 'mapped',
} as const;

/** All but which process and under what name. */
export type ProtectOption = Exclude<keyof ProtectRequest, 'pid' | 'name' | 'replicas'>;

export interface MemoryStatus {
  readonly primaryBytes: number;
  readonly residentBytes: number;
  readonly coldBytes: number;
  readonly absentBytes: number;
  /** All that stands by really takes of RAM; null: nothing does, or nobody has asked for it yet. */
  readonly ram: RamStatus | null;
}

/** As the kernel counts it: proportional set sizes, in bytes. */
export interface RamStatus {
  /** Processes of the replica. */
  readonly replicaBytes: number;
  /** Keeper and holder, without the staging memory. */
  readonly keeperBytes: number;
  readonly pagerBytes: number;
  /** Staging memory, which the daemon and the keeper have in common. */
  readonly stagingBytes: number;
  /** The daemon's process state table. */
  readonly indexBytes: number;
  readonly totalBytes: number;
}

/** Of a group whose replica may leave part of its memory in the page store. */
export interface PagingStatus {
  readonly accessTracker: string;
  readonly samples: number;
  readonly samplePeriodMs: number;
  /** Of one processor, that sampling takes. */
  readonly sampleShare: number;
  readonly store: string;
  readonly storeState: string;
  /** What the policy does at present. */
  readonly why: string;
  /** What is wrong with the store; null: nothing. */
  readonly trouble: string | null;
  readonly storeBytes: number;
  readonly writtenBytes: number;
  readonly evictedBytes: number;
  readonly broughtBackBytes: number;
  /** Written anew so that sparse segments of the store could be removed. */
  readonly movedBytes: number;
  /** Native memory of the process state table. */
  readonly tableBytes: number;
  readonly pagerPid: number;
}

/** Of a promoted process that has pages in the page store still. */
export interface RefillStatus {
  readonly coldBytes: number;
  readonly damagedBytes: number;
  readonly waitingFaults: number;
  readonly waitingMs: number;
  readonly trouble: string | null;
}

export interface VipStatus {
  /** ADDRESS/PREFIX@INTERFACE. */
  readonly address: string;
  /** On its interface, put there by this daemon. */
  readonly here: boolean;
  /** It was there before the group, and stays after it. */
  readonly wasThere: boolean;
  /** Why it is not there. */
  readonly trouble: string | null;
}

export interface PromotionStatus {
  readonly epoch: number;
  readonly pid: number;
  readonly hostPid: number;
  readonly exact: boolean;
  /** Of the process's time; null where nobody can tell. */
  readonly lostMs: number | null;
  readonly decisionToRunUs: number;
  readonly deathToRunUs: number;
  readonly lazyPages: number;
  /** Why something of a process that was killed is lost; null: nothing is, or it crashed. */
  readonly whyNotExact: string | null;
}

/** What anyone on the socket may see of a group. */
export interface GroupBrief {
  readonly name: string;
  readonly state: string;
  readonly node: string;
  /** False: the caller may not trace the process, and sees no more than this. */
  readonly details: boolean;
}

export interface GroupStatus extends GroupBrief {
  readonly details: true;
  readonly reason: string | null;
  /** As the program sees it. */
  readonly pid: number;
  readonly hostPid: number;
  /** Whether that very process still runs; a group may be over and its process not. */
  readonly running: boolean;
  readonly generation: number;
  readonly epoch: number;
  readonly lagMs: number;
  readonly pauseUs: QuantileSummary;
  readonly memory: MemoryStatus;
  readonly ram: string;
  readonly coldAfterMs: number;
  /** Directory of the page store; null: the daemon's. */
  readonly store: string | null;
  readonly paging: PagingStatus | null;
  readonly refill: RefillStatus | null;
  readonly replicas: readonly ReplicaStatus[];
  readonly interval: {
    readonly ms: number;
    readonly askedMs: number;
    readonly boundBy: string;
    readonly why: string;
  };
  readonly overhead: { readonly budget: number; readonly used: number };
  readonly maxPauseMs: number;
  readonly epochs: { readonly committed: number; readonly abandoned: number };
  readonly lastEpoch: {
    readonly dirtyPages: number;
    readonly bytes: number;
    readonly copyUs: number;
    readonly commitUs: number;
    readonly cpuUs: number;
    readonly precopyRounds: number;
    readonly threads: number;
    readonly processes: number;
  } | null;
  readonly progress: { readonly bytes: number; readonly bytesTotal: number } | null;
  readonly tracker: string | null;
  /** As asked: auto, uffd-wp or soft-dirty. */
  readonly trackerAsked: string;
  readonly attach: string;
  readonly onExit: string;
  readonly files: string;
  readonly retries: { readonly allowed: number; readonly left: number };
  /** Where output that led outside the group goes after a promotion; null is /dev/null. */
  readonly stdio: string | null;
  readonly pidfile: string | null;
  readonly onPromote: string | null;
  readonly onFence: string | null;
  readonly vip: VipStatus | null;
  /** Nodes that keep a replica, by rank, with commas between; null: this one alone. */
  readonly to: string | null;
  readonly shipFiles: string;
  readonly promotion: PromotionStatus | null;
  readonly warnings: readonly string[];
  readonly counters: Readonly<Record<string, number>>;
}

/** Pages of a mapping or of a part of it. */
export interface PageCounts {
  /** Touched in the last samples. */
  readonly hot: number;
  /** In the replica's RAM besides. */
  readonly warm: number;
  /** In the page store only. */
  readonly cold: number;
  readonly absent: number;
}

export interface InspectedMapping {
  readonly start: number;
  readonly end: number;
  /** "stack" or "anonymous"; `path` is its name, where the program gave it one. */
  readonly kind: string;
  readonly path: string;
  /** Equal parts of it, ascending; the last may be shorter. */
  readonly cells: readonly PageCounts[];
}

export interface InspectedProcess {
  /** As the program sees it. */
  readonly pid: number;
  readonly command: string;
  readonly mappings: readonly InspectedMapping[];
}

export interface StatusReport {
  readonly node: string;
  readonly daemon: {
    readonly pid: number;
    readonly uptimeMs: number;
    readonly version: string;
    /** What is wrong with the daemon itself, such as a state file that cannot be written. */
    readonly warnings: readonly string[];
  };
  readonly groups: readonly (GroupStatus | GroupBrief)[];
  /** Kept for other nodes; absent: there are none. */
  readonly standbys?: readonly StandbyStatus[];
}

export interface ProtectReport {
  readonly group: GroupStatus;
  readonly copiedBytes: number;
  readonly copyUs: number;
  readonly warnings: readonly string[];
  /** What was not asked for now but before, of the process or under the name: see group. */
  readonly takenOver: readonly ProtectOption[];
}

export interface EvictReport {
  readonly group: GroupStatus;
  /** That left the replica's RAM for the page store. */
  readonly evictedBytes: number;
  readonly ms: number;
}

export interface CheckpointReport {
  readonly group: string;
  /** Of the checkpoint: restore takes it where there are several. */
  readonly id: string;
  /** Directory to restore from. */
  readonly path: string;
  readonly epoch: number;
  /** Pages, for this checkpoint. */
  readonly writtenBytes: number;
  /** Pages that the store had before. */
  readonly coldBytes: number;
  /** On disk, with what it shares with the group. */
  readonly storedBytes: number;
  readonly ms: number;
}

export interface RemovalRequest {
  /** Absolute path of the page store; absent is that of the group, or the daemon's. */
  readonly store?: string | undefined;
  /** Of the group in it. */
  readonly from: string;
  /** Of the checkpoint; absent is all of that name. */
  readonly id?: string | undefined;
}

export interface RemovalReport {
  readonly path: string;
  readonly ids: readonly string[];
  /** On disk, that nothing else uses. */
  readonly freedBytes: number;
}

export interface RestoreRequest {
  /** Absolute path of the page store. */
  readonly store: string;
  /** Of the group in it. */
  readonly from: string;
  /** Of the group that it becomes; absent is the same. */
  readonly name?: string | undefined;
  /** Of the checkpoint; absent is the newest. */
  readonly id?: string | undefined;
  /** As KeyReport has it; absent is the daemon's own. For root alone. */
  readonly key?: string | undefined;
  readonly files?: 'refuse' | 'keep' | undefined;
}

export interface RestoreReport {
  readonly group: GroupStatus;
  readonly id: string;
  readonly epoch: number;
  /** Wall time of the epoch, ISO 8601. */
  readonly taken: string;
  readonly ms: number;
}

/** The key of the daemon's page stores: 64 hexadecimal digits, a minus, 8 of a checksum. */
export interface KeyReport {
  readonly key: string;
}

export type ProtectLine =
  | { readonly type: 'progress'; readonly bytes: number; readonly bytesTotal: number }
  | { readonly type: 'done'; readonly report: ProtectReport }
  | { readonly type: 'error'; readonly problem: Problem };

export interface EventRecord {
  readonly id: number;
  /** Wall time, ISO 8601. */
  readonly time: string;
  readonly group: string;
  readonly what: string;
  readonly why: string;
}

export type KernelReport = Readonly<Record<string, boolean | string | number>>;

export interface Problem {
  readonly type: 'about:blank';
  readonly title: string;
  readonly status: number;
  readonly code: string;
  readonly detail: string;
  readonly advice?: string | undefined;
  readonly refusals?: readonly Refusal[] | undefined;
}

/** A group's name is part of file names and cgroup paths. */
export const namePattern = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$/;

/** The native side looks closer. */
const vipPattern = /^[0-9A-Fa-f:.]{2,45}\/[0-9]{1,3}@[^\s/:@]{1,15}$/;
const homesPattern = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}(,[A-Za-z0-9][A-Za-z0-9_.-]{0,62}){0,7}$/;
const ramPattern = /^(all|hot|[1-9][0-9]?%)$/;
const commandLengthMax = 8192;

const hookField: Fields<{ hook: string }>['hook'] = [
  isText(commandLengthMax),
  `a command of up to ${commandLengthMax} characters without a zero byte`,
];

/** Where a promotion is to happen, and whether what speaks against it counts. */
export interface PromoteRequest {
  readonly to: string | undefined;
  readonly force: boolean;
}

const protectFields: Fields<ProtectRequest> = {
  // More than any kernel gives: whether there is one is another question.
  pid: [isInteger(1, 2 ** 31 - 1), 'a process id'],
  name: [
    (value): value is string => typeof value === 'string' && namePattern.test(value),
    'up to 63 letters, digits, dots, dashes or underscores, the first a letter or digit',
  ],
  intervalMs: [isBetween(10, 60_000), 'between 10 ms and 60 s'],
  overhead: [isBetween(0.0001, 1), 'between 0.01% and 100%'],
  maxPauseMs: [isBetween(0.1, 60_000), 'between 100 us and 60 s'],
  attach: [isOneOf('always', 'epochs'), 'always or epochs'],
  onExit: [isOneOf('end', 'promote'), 'end or promote'],
  files: [isOneOf('refuse', 'keep'), 'refuse or keep'],
  retries: [isInteger(0, 1000), 'a whole number from 0 to 1000'],
  tracker: [isOneOf('auto', 'uffd-wp', 'soft-dirty'), 'auto, uffd-wp or soft-dirty'],
  ram: [
    (value): value is string => typeof value === 'string' && ramPattern.test(value),
    'all, hot, or a share from 1% to 99%',
  ],
  coldAfterMs: [isBetween(1000, 86_400_000), 'between 1 s and 24 h'],
  store: [isAbsolutePath, 'an absolute path'],
  stdio: [
    (value): value is string | null => value === null || isAbsolutePath(value),
    'an absolute path, or null',
  ],
  pidfile: [isAbsolutePath, 'an absolute path'],
  onPromote: hookField,
  onFence: hookField,
  vip: [
    (value): value is string => typeof value === 'string' && vipPattern.test(value),
    'ADDRESS/PREFIX@INTERFACE, such as 10.0.0.9/24@eth0',
  ],
  to: [
    (value): value is string => typeof value === 'string' && homesPattern.test(value),
    'names of nodes or self, with commas between',
  ],
  replicas: [isInteger(1, 8), 'a whole number from 1 to 8'],
  shipFiles: [isOneOf('mapped', 'never'), 'mapped or never'],
};

/** Throws ERR_BAD_REQUEST that names the field, as `nameOf` does. */
export function checkProtectRequest(
  value: unknown,
  nameOf?: (field: keyof ProtectRequest) => string,
): ProtectRequest {
  return checkFields<ProtectRequest>(value, protectFields, ['pid'], nameOf);
}

const restoreFields: Fields<RestoreRequest> = {
  store: [isAbsolutePath, 'an absolute path'],
  from: [protectFields.name[0] as Check<string>, protectFields.name[1]],
  name: protectFields.name,
  id: [
    (value): value is string =>
      typeof value === 'string' && /^[0-9a-f]{16}-[1-9][0-9]{0,18}$/.test(value),
    'of a checkpoint, as replpage checkpoint gives it',
  ],
  key: [
    (value): value is string =>
      typeof value === 'string' && /^[0-9a-f]{64}-[0-9a-f]{8}$/.test(value),
    'a key as replpage key export writes it',
  ],
  files: protectFields.files,
};

const { store, from, id } = restoreFields;
const removalFields: Fields<RemovalRequest> = { store, from, id };

/** Throws ERR_BAD_REQUEST that names the field. */
export function checkRemovalRequest(value: unknown): RemovalRequest {
  return checkFields<RemovalRequest>(value, removalFields, ['from']);
}

/** Throws ERR_BAD_REQUEST that names the field. */
export function checkRestoreRequest(value: unknown): RestoreRequest {
  return checkFields<RestoreRequest>(value, restoreFields, ['store', 'from']);
}

export function isGroupStatus(group: GroupStatus | GroupBrief): group is GroupStatus {
  return group.details;
}
