/**
 * What travels over the local socket: requests, answers and events, with their checks. Keys and
 * units are stable; a new key may be added, none is renamed or removed.
 *
 *   GET  /v1/status                      -> StatusReport
 *   GET  /v1/groups/NAME                 -> GroupStatus, with its RAM measured anew
 *   GET  /v1/groups/NAME/pages           -> InspectedProcess[]
 *   POST /v1/groups                      ProtectRequest -> lines of ProtectLine
 *   POST /v1/groups/NAME/promote | unprotect | detach  -> GroupStatus
 *   POST /v1/groups/NAME/evict           -> EvictReport
 *   POST /v1/groups/NAME/checkpoint[?keep=1] -> CheckpointReport
 *   POST /v1/restore                     RestoreRequest -> RestoreReport
 *   GET  /v1/key                         -> KeyReport, for root alone
 *   GET  /v1/events?after=N[&follow=1]   -> lines of EventRecord
 *   GET  /v1/kernel                      -> KernelReport
 *
 * Errors are application/problem+json (RFC 9457) with a `code` of base/errors.ts.
 */
import { ReplicationError, type Refusal } from '../base/errors.js';
import type { QuantileSummary } from '../base/quantiles.js';

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
} as const;

/** All but which process and under what name. */
export type ProtectOption = Exclude<keyof ProtectRequest, 'pid' | 'name'>;

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

export interface ReplicaStatus {
  readonly node: string;
  readonly rank: number;
  readonly epoch: number;
  readonly state: string;
  readonly keeperSocket: string;
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

const ramPattern = /^(all|hot|[1-9][0-9]?%)$/;
const pathLengthMax = 4096;
const commandLengthMax = 8192;

type Check<T> = (value: unknown) => value is T;
const isText =
  (lengthMax: number): Check<string> =>
  (value): value is string =>
    typeof value === 'string' &&
    value.length > 0 &&
    value.length <= lengthMax &&
    !value.includes('\0');
const isBetween =
  (low: number, high: number): Check<number> =>
  (value): value is number =>
    typeof value === 'number' && value >= low && value <= high;
const isInteger =
  (low: number, high: number): Check<number> =>
  (value): value is number =>
    isBetween(low, high)(value) && Number.isInteger(value);
const isOneOf =
  <T extends string>(...allowed: readonly T[]): Check<T> =>
  (value): value is T =>
    allowed.some((one) => one === value);
const isAbsolutePath: Check<string> = (value): value is string =>
  isText(pathLengthMax)(value) && value.startsWith('/');

/** Every key that a ProtectRequest may have, what it must be, and the words for that. */
const protectFields: {
  readonly [K in keyof Required<ProtectRequest>]: readonly [Check<ProtectRequest[K]>, string];
} = {
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
  onPromote: [
    isText(commandLengthMax),
    `a command of up to ${commandLengthMax} characters without a zero byte`,
  ],
};

/** Throws ERR_BAD_REQUEST that names the field, as `nameOf` does. */
export function checkProtectRequest(
  value: unknown,
  nameOf: (field: keyof ProtectRequest) => string = (field) => field,
): ProtectRequest {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new ReplicationError('ERR_BAD_REQUEST', 'the request is not an object');
  }
  const request = value as Record<string, unknown>;
  if (request['pid'] === undefined) {
    throw new ReplicationError('ERR_BAD_REQUEST', 'pid is missing');
  }
  for (const [key, given] of Object.entries(request)) {
    if (!Object.hasOwn(protectFields, key)) {
      throw new ReplicationError('ERR_BAD_REQUEST', `${key} is not known here`);
    }
    const field = key as keyof ProtectRequest;
    const [check, words] = protectFields[field];
    if (given !== undefined && !check(given)) {
      throw new ReplicationError('ERR_BAD_REQUEST', `${nameOf(field)} must be ${words}`);
    }
  }
  return request as unknown as ProtectRequest;
}

const restoreFields: {
  readonly [K in keyof Required<RestoreRequest>]: readonly [Check<RestoreRequest[K]>, string];
} = {
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

/** Throws ERR_BAD_REQUEST that names the field. */
export function checkRestoreRequest(value: unknown): RestoreRequest {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new ReplicationError('ERR_BAD_REQUEST', 'the request is not an object');
  }
  const request = value as Record<string, unknown>;
  for (const field of ['store', 'from']) {
    if (request[field] === undefined) {
      throw new ReplicationError('ERR_BAD_REQUEST', `${field} is missing`);
    }
  }
  for (const [key, given] of Object.entries(request)) {
    if (!Object.hasOwn(restoreFields, key)) {
      throw new ReplicationError('ERR_BAD_REQUEST', `${key} is not known here`);
    }
    const [check, words] = restoreFields[key as keyof RestoreRequest];
    if (given !== undefined && !check(given)) {
      throw new ReplicationError('ERR_BAD_REQUEST', `${key} must be ${words}`);
    }
  }
  return request as unknown as RestoreRequest;
}

export function isGroupStatus(group: GroupStatus | GroupBrief): group is GroupStatus {
  return group.details;
}
