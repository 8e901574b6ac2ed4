/** The options of `protect`, from the command line to a request, and from a group back. */
import {
  checkProtectRequest,
  protectDefaults,
  type GroupStatus,
  type ProtectOption,
  type ProtectRequest,
} from '../api/schema.js';
import { givenPath } from '../base/paths.js';
import { parseDurationMs, parseOption, parsePercent, parseWhole } from '../base/units.js';

/** As commander gives them. */
export interface ProtectFlags {
  readonly name?: string;
  readonly epoch?: string;
  readonly overhead?: string;
  readonly maxPause?: string;
  readonly attach?: string;
  readonly onExit?: string;
  readonly retries?: string;
  readonly files?: string;
  readonly stdio?: string;
  readonly pidfile?: string;
  readonly onPromote?: string;
  readonly onFence?: string;
  readonly vip?: string;
  readonly tracker?: string;
  readonly ram?: string;
  readonly coldAfter?: string;
  readonly store?: string;
  readonly to?: string;
  readonly replicas?: string;
  readonly shipFiles?: string;
}

const flagNames: { readonly [K in keyof Required<ProtectRequest>]: string } = {
  pid: 'pid',
  name: '--name',
  intervalMs: '--epoch',
  overhead: '--overhead',
  maxPauseMs: '--max-pause',
  attach: '--attach',
  onExit: '--on-exit',
  files: '--files',
  retries: '--retries',
  tracker: '--tracker',
  ram: '--ram',
  coldAfterMs: '--cold-after',
  store: '--store',
  stdio: '--stdio',
  pidfile: '--pidfile',
  onPromote: '--on-promote',
  onFence: '--on-fence',
  vip: '--vip',
  to: '--to',
  replicas: '--replicas',
  shipFiles: '--ship-files',
};

/** Throws ERR_USAGE or ERR_BAD_REQUEST, with the name of the option. */
export function toRequest(pid: string, flags: ProtectFlags): ProtectRequest {
  const parse = <T>(
    text: string | undefined,
    flag: string,
    parser: (text: string) => T,
  ): T | undefined => (text === undefined ? undefined : parseOption(flag, text, parser));
  const request = {
    pid: parseOption('pid', pid, parseWhole),
    name: flags.name,
    intervalMs: parse(flags.epoch, '--epoch', parseDurationMs),
    overhead: parse(flags.overhead, '--overhead', parsePercent),
    maxPauseMs: parse(flags.maxPause, '--max-pause', parseDurationMs),
    attach: flags.attach,
    onExit: flags.onExit,
    files: flags.files,
    retries: parse(flags.retries, '--retries', parseWhole),
    tracker: flags.tracker,
    ram: flags.ram,
    coldAfterMs: parse(flags.coldAfter, '--cold-after', parseDurationMs),
    store: absolute('--store', flags.store),
    stdio: flags.stdio === 'null' ? null : absolute('--stdio', flags.stdio),
    pidfile: absolute('--pidfile', flags.pidfile),
    onPromote: flags.onPromote,
    onFence: flags.onFence,
    vip: flags.vip,
    to: flags.to,
    replicas: parse(flags.replicas, '--replicas', parseWhole),
    shipFiles: flags.shipFiles,
  };
  return checkProtectRequest(request, (field) => flagNames[field]);
}

const absolute = (flag: string, path: string | undefined): string | undefined =>
  path === undefined ? undefined : givenPath(flag, path);

/** What the group was protected with. */
function valuesOf(group: GroupStatus): Required<Record<ProtectOption, string | number | null>> {
  const { interval, overhead, maxPauseMs, attach, onExit, files, retries } = group;
  return {
    intervalMs: interval.askedMs,
    overhead: overhead.budget,
    maxPauseMs,
    attach,
    onExit,
    files,
    retries: retries.allowed,
    tracker: group.trackerAsked,
    ram: group.ram,
    coldAfterMs: group.coldAfterMs,
    store: group.store,
    stdio: group.stdio ?? 'null',
    pidfile: group.pidfile,
    onPromote: group.onPromote,
    onFence: group.onFence,
    vip: group.vip?.address ?? null,
    to: group.to,
    shipFiles: group.shipFiles,
  };
}

function typed(option: ProtectOption, value: string | number): string {
  const text =
    option === 'overhead'
      ? `${Number((Number(value) * 100).toFixed(4))}%`
      : `${value}${option.endsWith('Ms') ? 'ms' : ''}`;
  return `${flagNames[option]} ${quoted(text)}`;
}

/** The group's options as they would be typed: those that are named, and none that it has not. */
export function optionsText(group: GroupStatus, named: readonly ProtectOption[]): string {
  const values = valuesOf(group);
  return named
    .map((option) => [option, values[option]] as const)
    .flatMap(([option, value]) => (value === null ? [] : [typed(option, value)]))
    .join(' ');
}

/** The whole command, with every option that is not the default. */
export function protectCommand(group: GroupStatus): string {
  const defaults: Readonly<Partial<Record<ProtectOption, unknown>>> = protectDefaults;
  const values = Object.entries(valuesOf(group)) as [ProtectOption, unknown][];
  const own = values.filter(([option, value]) => value !== defaults[option]);
  const options = optionsText(
    group,
    own.map(([option]) => option),
  );
  return `replpage protect ${group.hostPid} --name ${group.name} ${options}`;
}

/** For a shell. */
function quoted(text: string): string {
  return /^[A-Za-z0-9_@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
