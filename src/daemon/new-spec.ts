/**
 * The options of a new group: what was asked for now, else what the group had that it takes the
 * place of, else the defaults.
 */
import { randomBytes } from 'node:crypto';
import { protectDefaults, type ProtectOption, type ProtectRequest } from '../api/schema.js';
import type { GroupSpec, Owner } from '../capture/group-spec.js';

export interface NewSpec {
  readonly spec: GroupSpec;
  /** What came from the group before, and is not the default. */
  readonly takenOver: readonly ProtectOption[];
  readonly warnings: readonly string[];
}

/** Opened or run with somebody's rights. */
const withRights: readonly ProtectOption[] = [
  'stdio',
  'store',
  'pidfile',
  'onPromote',
  'onFence',
  'vip',
];

const options = [
  'intervalMs',
  'overhead',
  'maxPauseMs',
  'attach',
  'onExit',
  'files',
  'retries',
  'tracker',
  'ram',
  'coldAfterMs',
  'store',
  'stdio',
  'pidfile',
  'onPromote',
  'onFence',
  'vip',
  'to',
  'shipFiles',
] as const satisfies readonly ProtectOption[];

export function defaultOutput(logDir: string, name: string): string {
  return `${logDir}/${name}.log`;
}

export interface Circumstances {
  readonly caller: Owner;
  /** The group of that process or name, if there was one. */
  readonly before?: GroupSpec | undefined;
  readonly logDir: string;
}

/**
 * Files and hooks keep the owner that asked for them; where somebody else asks for some of these, none of the others' is kept.
 */
export function newSpec(
  name: string,
  request: ProtectRequest,
  { caller, before, logDir }: Circumstances,
): NewSpec {
  const foreign =
    before !== undefined &&
    before.owner.uid !== caller.uid &&
    withRights.some((option) => request[option] !== undefined);
  const inherited = before === undefined ? {} : inheritable(before, logDir, foreign);
  const spec: GroupSpec = {
    ...protectDefaults,
    stdio: defaultOutput(logDir, name),
    pidfile: undefined,
    onPromote: undefined,
    onFence: undefined,
    vip: undefined,
    store: undefined,
    to: undefined,
    storeId: randomBytes(8).toString('hex'),
    ...inherited,
    ...given(request),
    name,
    owner: before === undefined || foreign ? caller : ownerOf(before, caller),
  };
  const takenOver = options.filter(
    (option) => request[option] === undefined && Object.hasOwn(inherited, option),
  );
  const lost = foreign ? withRights.filter((option) => isLost(before, option, request)) : [];
  const warnings = lost.map(
    (option) =>
      `${option} of the group before was asked for by user ${before?.owner.uid}, and is not kept`,
  );
  return { spec, takenOver, warnings: [...warnings, ...idleWarnings(spec, request)] };
}

/** Whoever asks for a store believes that it is used. */
function idleWarnings({ ram }: GroupSpec, request: ProtectRequest): readonly string[] {
  if (ram !== 'all') return [];
  const idle = [
    ...(request.store === undefined ? [] : ['--store']),
    ...(request.coldAfterMs === undefined ? [] : ['--cold-after']),
  ];
  if (idle.length === 0) return [];
  return [
    `${idle.join(' and ')} without effect: the replica keeps everything in RAM (--ram all); ` +
      `--ram hot or a share such as --ram 30% uses the page store`,
  ];
}

function isLost(
  before: GroupSpec | undefined,
  option: ProtectOption,
  request: ProtectRequest,
): boolean {
  if (option === 'stdio' || request[option] !== undefined) return false;
  return before?.[option] !== undefined;
}

/** The caller's groups are newer, where the user is the same. */
function ownerOf(before: GroupSpec, caller: Owner): Owner {
  return before.owner.uid === caller.uid ? caller : before.owner;
}

function given(request: ProtectRequest): Partial<GroupSpec> {
  const entries = options.map((option) => [option, request[option]] as const);
  return Object.fromEntries(entries.filter(([, value]) => value !== undefined));
}

/** Of an earlier group, what differs from the defaults. */
function inheritable(before: GroupSpec, logDir: string, foreign: boolean): Partial<GroupSpec> {
  const defaults: Partial<GroupSpec> = {
    ...protectDefaults,
    stdio: defaultOutput(logDir, before.name),
  };
  const kept = options.filter(
    (option) => before[option] !== defaults[option] && !(foreign && withRights.includes(option)),
  );
  return Object.fromEntries(kept.map((option) => [option, before[option]]));
}
