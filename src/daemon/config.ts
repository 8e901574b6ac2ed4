/**
 * Where the daemon keeps things and its limits: flag, then REPLPAGE_* variable, then default.
 * With another runtime folder, as tests have, everything else moves below it.
 */
import { join, resolve } from 'node:path';
import { logLevels, type LogLevel } from '../base/log.js';
import { ReplicationError } from '../base/errors.js';
import { parseBytes, parseDurationMs } from '../base/units.js';
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

/** Throws ERR_USAGE on a value that is not understood. */
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
  const take = (flag: string | undefined, variable: string, byDefault: string): string =>
    flag ?? env[variable] ?? byDefault;
  const deadline = take(flags.freezeDeadline, 'REPLPAGE_FREEZE_DEADLINE', defaults.freezeDeadline);
  return {
    runtimeDir,
    socketPath: socketPathOf(runtimeDir),
    keepersDir: join(runtimeDir, 'keepers'),
    stateDir,
    spillDir: join(stateDir, 'spill'),
    logDir,
    logLevel: readLevel(take(flags.logLevel, 'REPLPAGE_LOG_LEVEL', defaults.logLevel)),
    freezeDeadlineUs: Math.round(parseDurationMs(deadline) * 1000),
    stagingBytesMax: parseBytes(
      take(flags.stagingMax, 'REPLPAGE_STAGING_MAX', defaults.stagingMax),
    ),
    spillBytesMax: parseBytes(take(flags.spillMax, 'REPLPAGE_SPILL_MAX', defaults.spillMax)),
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
