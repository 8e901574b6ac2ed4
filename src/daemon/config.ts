/**
 * Where the daemon keeps things and its limits: flag, then REPLPAGE_* variable, then default.
 * With another runtime folder, as tests have, everything else moves below it.
 */
import { join, resolve } from 'node:path';
import { logLevels, type LogLevel } from '../base/log.js';
import { ReplicationError } from '../base/errors.js';
import {
  checkRange,
  formatBytes,
  formatMs,
  parseBytes,
  parseDurationMs,
  parseOption,
} from '../base/units.js';
import { runtimeDirDefault, runtimeDirOf, socketPathOf } from '../base/paths.js';

export interface DaemonConfig {
  readonly runtimeDir: string;
  readonly socketPath: string;
  readonly keepersDir: string;
  readonly stateDir: string;
  readonly spillDir: string;
  readonly logDir: string;
  readonly logLevel: LogLevel;
  /** A freeze that is not complete after this is given up (rule 1). */
  readonly freezeDeadlineUs: number;
  readonly stagingBytesMax: number;
  readonly spillBytesMax: number;
  readonly groupsMax: number;
  readonly eventsMax: number;
}

/** As commander gives them. */
export interface DaemonFlags {
  readonly runtimeDir?: string;
  readonly stateDir?: string;
  readonly logDir?: string;
  readonly logLevel?: string;
  readonly freezeDeadline?: string;
  readonly stagingMax?: string;
  readonly spillMax?: string;
}

const defaults = {
  stateDir: '/var/lib/replpage',
  logDir: '/var/log/replpage',
  logLevel: 'info',
  freezeDeadline: '20ms',
  stagingMax: '256MiB',
  spillMax: '16GiB',
} as const;

const mebibyte = 1024 ** 2;

/** What native code can work with: four chunks of 2 MiB, up to what the keeper maps. */
const stagingBytes = { min: 8 * mebibyte, max: 256 * mebibyte };
/** 0: no spill file. */
const spillBytes = { min: 0, max: 1024 ** 4 };
/** Below, no freeze is ever complete; above, the primary stands still for longer than it may. */
const freezeMs = { min: 1, max: 1000 };

type Range = { readonly min: number; readonly max: number };

const bytesIn =
  ({ min, max }: Range) =>
  (text: string): number =>
    checkRange(parseBytes(text), min, max, formatBytes);

const durationIn =
  ({ min, max }: Range) =>
  (text: string): number =>
    checkRange(parseDurationMs(text), min, max, formatMs);

/** Throws ERR_USAGE, with the name of the option, on what is not understood or out of its range. */
export function readConfig(
  flags: DaemonFlags,
  env: Readonly<Record<string, string | undefined>>,
): DaemonConfig {
  const runtimeDir = runtimeDirOf(flags.runtimeDir, env);
  const elsewhere = runtimeDir !== runtimeDirDefault;
  const stateDir = resolve(
    flags.stateDir ??
      env['REPLPAGE_STATE_DIR'] ??
      (elsewhere ? join(runtimeDir, 'state') : defaults.stateDir),
  );
  const logDir = resolve(
    flags.logDir ??
      env['REPLPAGE_LOG_DIR'] ??
      (elsewhere ? join(runtimeDir, 'log') : defaults.logDir),
  );
  const take = <T>(option: keyof typeof defaults, parser: (text: string) => T): T => {
    const name = option.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
    const variable = `REPLPAGE_${name.replaceAll('-', '_').toUpperCase()}`;
    const flag = flags[option];
    if (flag !== undefined) return parseOption(`--${name}`, flag, parser);
    return parseOption(variable, env[variable] ?? defaults[option], parser);
  };
  return {
    runtimeDir,
    socketPath: socketPathOf(runtimeDir),
    keepersDir: join(runtimeDir, 'keepers'),
    stateDir,
    spillDir: join(stateDir, 'spill'),
    logDir,
    logLevel: take('logLevel', readLevel),
    freezeDeadlineUs: Math.round(take('freezeDeadline', durationIn(freezeMs)) * 1000),
    stagingBytesMax: take('stagingMax', bytesIn(stagingBytes)),
    spillBytesMax: take('spillMax', bytesIn(spillBytes)),
    groupsMax: 64,
    eventsMax: 1024,
  };
}

function readLevel(text: string): LogLevel {
  const level = logLevels.find((known) => known === text);
  if (level === undefined) {
    throw new ReplicationError('ERR_USAGE', `"${text}" is no log level`, {
      advice: `one of ${logLevels.join(', ')}`,
    });
  }
  return level;
}
