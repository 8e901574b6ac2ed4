/**
 * Where the daemon keeps things and its limits: flag, then REPLPAGE_* variable, then default.
 * With another runtime folder, as tests have, everything else moves below it.
 */
import { join } from 'node:path';
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
import type { AccessTrackerChoice } from '../native/group.js';
import { givenFolder, runtimeDirDefault, runtimeDirOf, socketPathOf } from '../base/paths.js';

export interface DaemonConfig {
  readonly runtimeDir: string;
  readonly socketPath: string;
  readonly keepersDir: string;
  readonly stateDir: string;
  readonly spillDir: string;
  /** The page store of groups that name none, and the file of its key. */
  readonly storeDir: string;
  readonly storeKeyPath: string;
  /** Of one group in the page store. */
  readonly storeBytesMax: number;
  readonly accessTracker: AccessTrackerChoice;
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
  readonly store?: string;
  readonly storeMax?: string;
  readonly accessTracker?: string;
}

const defaults = {
  stateDir: '/var/lib/replpage',
  logDir: '/var/log/replpage',
  logLevel: 'info',
  freezeDeadline: '20ms',
  stagingMax: '256MiB',
  spillMax: '16GiB',
  storeMax: '1TiB',
  accessTracker: 'auto',
} as const;

const mebibyte = 1024 ** 2;

/** The first copy goes through a ring of 17 MiB; the keeper maps no more than the rest. */
const stagingBytes = { min: 32 * mebibyte, max: 256 * mebibyte };
/** 0: no spill file. */
const spillBytes = { min: 0, max: 1024 ** 4 };
/** Room for a few segments, up to what locations can name. */
const storeBytes = { min: 64 * mebibyte, max: 64 * 1024 ** 4 };
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
  const stateDir =
    givenFolder('state-dir', flags.stateDir, env) ??
    (elsewhere ? join(runtimeDir, 'state') : defaults.stateDir);
  const logDir =
    givenFolder('log-dir', flags.logDir, env) ??
    (elsewhere ? join(runtimeDir, 'log') : defaults.logDir);
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
    storeDir: givenFolder('store', flags.store, env) ?? join(stateDir, 'store'),
    storeKeyPath: join(stateDir, 'store.key'),
    storeBytesMax: take('storeMax', bytesIn(storeBytes)),
    accessTracker: take('accessTracker', readAccessTracker),
    logDir,
    logLevel: take('logLevel', readLevel),
    freezeDeadlineUs: Math.round(take('freezeDeadline', durationIn(freezeMs)) * 1000),
    stagingBytesMax: take('stagingMax', bytesIn(stagingBytes)),
    spillBytesMax: take('spillMax', bytesIn(spillBytes)),
    groupsMax: 64,
    eventsMax: 1024,
  };
}

function readAccessTracker(text: string): AccessTrackerChoice {
  const choices = ['auto', 'page-walk', 'idle-bitmap', 'write-recency'] as const;
  const choice = choices.find((known) => known === text);
  if (choice === undefined) {
    throw new ReplicationError('ERR_USAGE', `"${text}" is no access tracker`, {
      advice: `one of ${choices.join(', ')}`,
    });
  }
  return choice;
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
