/** What every command has: the client, and where results, progress and errors go. */
import type { Command } from 'commander';
import { ApiClient } from '../api/client.js';
import { namePattern } from '../api/schema.js';
import { describe, ReplicationError, type ErrorCode } from '../base/errors.js';
import { runtimeDirOf, socketPathOf } from '../base/paths.js';

export interface CommonFlags {
  readonly json?: boolean;
  readonly runtimeDir?: string;
}

export interface Context {
  readonly json: boolean;
  readonly runtimeDir: string;
  readonly client: ApiClient;
}

/** Every command takes these. */
export function withCommonFlags(command: Command): Command {
  return command
    .option('--json', 'print one JSON object on stdout instead of text')
    .option('--runtime-dir <dir>', 'where the daemon has its socket (or $REPLPAGE_RUNTIME_DIR)');
}

export function contextOf(flags: CommonFlags): Context {
  const runtimeDir = runtimeDirOf(flags.runtimeDir, process.env);
  return {
    json: flags.json === true,
    runtimeDir,
    client: new ApiClient(socketPathOf(runtimeDir)),
  };
}

/** A group's name as the user gave it. Throws ERR_USAGE. */
export function groupName(text: string): string {
  if (namePattern.test(text)) return text;
  throw new ReplicationError('ERR_USAGE', `"${text}" is no name of a group`, {
    advice: 'replpage status shows those there are',
  });
}

export function print(text: string): void {
  process.stdout.write(`${text}\n`);
}

export function printJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}

export function say(text: string): void {
  process.stderr.write(`${text}\n`);
}

/** Documented in `replpage --help`. */
export const exitCodes = {
  failure: 1,
  usage: 64,
  refused: 65,
  noInput: 66,
  noDaemon: 69,
  bug: 70,
  tryAgain: 75,
  denied: 77,
  interrupted: 130,
} as const;

const exitCodeOf: Readonly<Record<ErrorCode, number>> = {
  ERR_REFUSED: exitCodes.refused,
  ERR_USAGE: exitCodes.usage,
  ERR_BAD_REQUEST: exitCodes.usage,
  ERR_DENIED: exitCodes.denied,
  ERR_NO_DAEMON: exitCodes.noDaemon,
  ERR_DAEMON_RUNS: exitCodes.failure,
  ERR_NO_PROCESS: exitCodes.noInput,
  ERR_NO_GROUP: exitCodes.noInput,
  ERR_GROUP_EXISTS: exitCodes.failure,
  ERR_PROTECTED_ALREADY: exitCodes.failure,
  ERR_STATE: exitCodes.tryAgain,
  ERR_ENDED: exitCodes.failure,
  ERR_NO_REPLICA: exitCodes.failure,
  ERR_LIMIT: exitCodes.tryAgain,
  ERR_FILES_CHANGED: exitCodes.refused,
  ERR_STORE: exitCodes.refused,
  ERR_NATIVE_MISSING: exitCodes.failure,
  ERR_NATIVE: exitCodes.failure,
  ERR_STATE_FILE: exitCodes.failure,
  ERR_FOLDER: exitCodes.failure,
  ERR_INTERRUPTED: exitCodes.interrupted,
  ERR_TIMEOUT: exitCodes.tryAgain,
  ERR_NO_CLUSTER: exitCodes.failure,
  ERR_IN_CLUSTER: exitCodes.failure,
  ERR_JOIN: exitCodes.failure,
  ERR_NO_NODE: exitCodes.noInput,
};

/** Tells the user, and gives the exit status. */
export function report(error: unknown, json: boolean): number {
  const own = error instanceof ReplicationError ? error : undefined;
  const code = own?.code ?? 'ERR_BUG';
  if (json) {
    const { advice, refusals } = own ?? {};
    printJson({ error: { code, message: describe(error), advice, refusals } });
  } else {
    say(`replpage: ${describe(error)}`);
    for (const { pid, object, kind, why } of own?.refusals ?? []) {
      say(`  pid ${pid}, ${object}: ${kind}: ${why}`);
    }
    if (own?.advice !== undefined) say(`  what to do: ${own.advice}`);
    if (own === undefined && error instanceof Error) say(error.stack ?? '');
  }
  return own === undefined ? exitCodes.bug : exitCodeOf[own.code];
}

/** Aborts on Ctrl-C and SIGTERM, so that what was begun is undone before the command ends. */
export function interruptSignal(): AbortSignal {
  const controller = new AbortController();
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.once(name, () => controller.abort());
  }
  return controller.signal;
}
