/**
 * Tells outsiders what runs now: the pid file, the hook, and the file that takes a promoted
 * program's output. All with the rights of whoever asked, never the daemon's (rule 10).
 */
import { spawn } from 'node:child_process';
import { constants } from 'node:fs';
import { lstat, open, rename, rm, type FileHandle } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { describe, ReplicationError } from '../base/errors.js';
import type { Log } from '../base/log.js';
import type { Announcement, GroupSpec, Owner } from '../capture/group-spec.js';

const hookLimitMs = 30_000;
/** Of a hook's output, in the log. */
const outputBytesMax = 4096;

/**
 * New name, then rename: whoever reads it never sees half a number. Who reads and removes the file
 * relies on its mode.
 */
const writePidfile =
  'umask 022; printf "%s\\n" "$2" >"$1.new.$$" && ' +
  '{ test ! -f "$1" || chmod --reference="$1" "$1.new.$$"; } && mv -f "$1.new.$$" "$1"';

/** What happened, and on which node. */
export type Told = Announcement & { readonly node: string };

/** After a promotion. Gives who could not be told, and why: one line each. */
export async function announce(
  spec: GroupSpec,
  report: Told,
  log: Log,
  limitMs = hookLimitMs,
): Promise<readonly string[]> {
  const told = await Promise.all([
    tellPidfile(spec, report, log),
    runHook('promote', spec, report, log, limitMs),
  ]);
  return told.filter((problem) => problem !== undefined);
}

/**
 * The group may not run here any more: what was known of it last. Nothing of it runs, and its
 * address is gone from here. Gives who could not be told, and why.
 */
export async function announceFence(
  spec: GroupSpec,
  report: Told,
  log: Log,
): Promise<readonly string[]> {
  const problem = await runHook('fence', spec, report, log, hookLimitMs);
  return problem === undefined ? [] : [problem];
}

async function tellPidfile(
  { name, pidfile, owner }: GroupSpec,
  { hostPid }: Announcement,
  log: Log,
): Promise<string | undefined> {
  if (pidfile === undefined) return undefined;
  const own = log.child({ group: name, pidfile });
  // The program, or somebody else, may have put something else there since `protect`.
  const status = await statusOf(['/bin/sh', '-c', pidfileContentCheck, 'sh', pidfile], owner, log);
  const other = contentChecks[status ?? -1];
  if (other !== undefined) {
    own.warn({ hostPid, reason: other }, 'outsider could not be told');
    return `--pidfile ${pidfile}: ${other}`;
  }
  const command = ['/bin/sh', '-c', writePidfile, 'sh', pidfile, String(hostPid)];
  const problem = isOurselves(owner)
    ? await writeOurPidfile(pidfile, hostPid, own)
    : await run(command, owner, {}, own);
  return problem === undefined ? undefined : `--pidfile ${pidfile}: ${problem}`;
}

type HookEvent = 'promote' | 'fence';

/** docs/operations.md has the table. All are always there, so that a hook may use `set -u`. */
function hookEnvironment(
  event: HookEvent,
  spec: GroupSpec,
  report: Told,
): Readonly<Record<string, string>> {
  return {
    REPLPAGE_EVENT: event,
    REPLPAGE_GROUP: spec.name,
    REPLPAGE_NODE: report.node,
    REPLPAGE_REASON: report.reason,
    REPLPAGE_PID: String(report.pid),
    REPLPAGE_HOST_PID: String(report.hostPid),
    REPLPAGE_GENERATION: String(report.generation),
    REPLPAGE_EPOCH: String(report.epoch),
    REPLPAGE_EXACT: String(report.exact),
    REPLPAGE_VIP: spec.vip ?? '',
  };
}

async function runHook(
  event: HookEvent,
  spec: GroupSpec,
  report: Told,
  log: Log,
  limitMs: number,
): Promise<string | undefined> {
  const command = event === 'promote' ? spec.onPromote : spec.onFence;
  if (command === undefined) return undefined;
  const env = hookEnvironment(event, spec, report);
  const own = log.child({ group: spec.name, hook: event, command });
  const problem = await run(['/bin/sh', '-c', command], spec.owner, env, own, limitMs);
  return problem === undefined ? undefined : `--on-${event} ${command}: ${problem}`;
}

/** Exit statuses of the checks below, in words. */
const contentChecks: Readonly<Record<number, string>> = {
  12: 'it is no file that can be replaced',
  13: 'it holds more than a pid, which would be lost',
};
const checks: Readonly<Record<number, string>> = {
  ...contentChecks,
  10: 'its folder does not exist, or may not be entered',
  11: 'its folder may not be written to',
  20: 'the shell does not understand it',
  21: 'there is no such program, or it may not be run',
};
/**
 * The whole file is replaced: a device or the lock file of PostgreSQL (which ends when it finds
 * another pid in it than its own) must not be. One that may not be read cannot be judged.
 */
const pidfileContentCheck =
  'test -e "$1" || exit 0; test -f "$1" || exit 12; set -f; ' +
  'words=$(head -c 64 -- "$1" | tr "\\0" x) || exit 13; set -- $words; test $# -le 1 || exit 13; ' +
  'case ${1-} in *[!0-9]*) exit 13;; esac';
const pidfileCheck = `test -d "$2" && test -x "$2" || exit 10; test -w "$2" || exit 11; ${pidfileContentCheck}`;
/** A name with a slash is not looked for in PATH. */
const hookCheck =
  'sh -n -c "$1" || exit 20; first=${1%%[[:space:]]*}; ' +
  'case $first in *[!A-Za-z0-9_./+-]*) ;; /*) test -f "$first" && test -x "$first" || exit 21;; esac';

/**
 * Tries what a promotion will need, with the rights that it will have.
 * Throws ERR_BAD_REQUEST that names the option.
 */
export async function checkOutsiders(spec: GroupSpec, log: Log): Promise<void> {
  const { pidfile, onPromote, onFence, owner } = spec;
  const check = async (option: string, command: readonly string[]): Promise<void> => {
    const status = await statusOf(['/bin/sh', '-c', ...command], owner, log);
    if (status === 0) return;
    const why = checks[status ?? -1] ?? `it could not be tried (status ${status})`;
    throw new ReplicationError('ERR_BAD_REQUEST', `${option}: ${why}`, {
      advice:
        status !== undefined && Object.hasOwn(contentChecks, status)
          ? 'name a file that holds a pid and nothing else, or one that is not there yet'
          : `it is used with the rights of user ${owner.uid}, in the folder /`,
    });
  };
  if (pidfile !== undefined) {
    await check(`--pidfile ${pidfile}`, [pidfileCheck, 'sh', pidfile, dirname(pidfile)]);
  }
  const hooks = [
    ['--on-promote', onPromote],
    ['--on-fence', onFence],
  ] as const;
  for (const [option, command] of hooks) {
    if (command !== undefined) await check(`${option} ${command}`, [hookCheck, 'sh', command]);
  }
}

function statusOf(command: readonly string[], owner: Owner, log: Log): Promise<number | undefined> {
  const [file = '', ...args] = withRights(command, owner);
  return new Promise((resolve) => {
    const child = spawn(file, args, { cwd: '/', env: environment(), stdio: 'ignore' });
    child.on('error', (error) => {
      log.warn({ reason: describe(error) }, 'outsiders could not be checked');
      resolve(undefined);
    });
    child.on('exit', (status) => resolve(status ?? undefined));
  });
}

const environment = (): Readonly<Record<string, string>> => ({
  PATH: process.env['PATH'] ?? '/usr/sbin:/usr/bin:/sbin:/bin',
});

const isOurselves = (owner: Owner): boolean => owner.uid === process.getuid?.();

async function writeOurPidfile(
  path: string,
  hostPid: number,
  log: Log,
): Promise<string | undefined> {
  const fresh = `${path}.new.${process.pid}`;
  try {
    await rm(fresh, { force: true });
    const file = await open(fresh, 'wx', 0o644);
    try {
      await file.writeFile(`${hostPid}\n`);
      await takeAfter(file, path);
    } finally {
      await file.close();
    }
    await rename(fresh, path);
    log.info({ hostPid }, 'outsider told');
    return undefined;
  } catch (error) {
    log.warn({ hostPid, reason: describe(error) }, 'outsider could not be told');
    await rm(fresh, { force: true }).catch(() => undefined);
    return describe(error);
  }
}

/**
 * Owner and mode stay: the program, as its own user, reads its pid file or removes it at its end. Of
 * the descriptor: whoever owns the folder could put something else in the place of the name.
 */
async function takeAfter(fresh: FileHandle, path: string): Promise<void> {
  const before = await lstat(path).catch(() => undefined);
  if (before?.isFile() !== true) return;
  const own = await fresh.stat();
  if (own.uid !== before.uid || own.gid !== before.gid) await fresh.chown(before.uid, before.gid);
  await fresh.chmod(before.mode & 0o777);
}

/** setpriv(1) sets the supplementary groups too. */
function withRights(command: readonly string[], owner: Owner): readonly string[] {
  if (isOurselves(owner)) return command;
  const groups = owner.groups.length > 0 ? `--groups=${owner.groups.join(',')}` : '--clear-groups';
  return ['setpriv', `--reuid=${owner.uid}`, `--regid=${owner.gid}`, groups, '--', ...command];
}

/** Gives why it failed, if it did. */
function run(
  command: readonly string[],
  owner: Owner,
  env: Readonly<Record<string, string>>,
  log: Log,
  limitMs = hookLimitMs,
): Promise<string | undefined> {
  const [file = '', ...args] = withRights(command, owner);
  return new Promise<string | undefined>((resolve) => {
    // Throws, or gives a child without streams, where the machine or the arguments allow none.
    const child = spawn(file, args, {
      cwd: '/',
      env: { ...environment(), ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
      // Its own process group, so that the time limit ends all of it.
      detached: true,
    });
    let output = '';
    const take = (chunk: Buffer): void => {
      if (output.length < outputBytesMax) output += chunk.toString('utf8');
    };
    child.stdout.on('data', take);
    child.stderr.on('data', take);
    let late = false;
    const limit = setTimeout(() => {
      late = true;
      endGroup(child.pid);
      // What has left its process group may hold them, and would be waited for.
      child.stdout.destroy();
      child.stderr.destroy();
    }, limitMs);
    const done = (problem: string | undefined): void => {
      clearTimeout(limit);
      const said = output.slice(0, outputBytesMax);
      if (problem === undefined) log.info({ output: said }, 'outsider told');
      else log.warn({ reason: problem, output: said }, 'outsider could not be told');
      const [line = ''] = said.trim().split('\n').slice(-1);
      resolve(problem === undefined || line === '' ? problem : `${problem}: ${line}`);
    };
    child.on('error', (error) => done(describe(error)));
    child.on('close', (status, signal) => {
      const how = late ? `it was not over after ${limitMs / 1000} s, and` : 'it';
      const fine = status === 0 && !late;
      done(fine ? undefined : `${how} ended with ${signal ?? `status ${status}`}`);
    });
  }).catch((error: unknown) => {
    // Nobody's hook may end the daemon.
    log.warn({ reason: describe(error) }, 'outsider could not be told');
    return describe(error);
  });
}

function endGroup(pid: number | undefined): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, 'SIGKILL');
  } catch {
    // It has ended meanwhile.
  }
}

/**
 * The default output file: made here, since the folder is root's, and given to whoever asked,
 * since it is opened with their rights. One left by another user's group is not theirs to read.
 * Gives its path.
 */
export async function makeOutputFile(logDir: string, name: string, owner: Owner): Promise<string> {
  const path = join(logDir, `${name}.log`);
  const left = await lstat(path).catch(() => undefined);
  if (left?.isFile() === false) await rm(path);
  // Somebody else's group had that name, and what it promoted may still write there.
  else if (left !== undefined && left.uid !== owner.uid) await rename(path, `${path}.${left.uid}`);
  const flags = constants.O_CREAT | constants.O_WRONLY | constants.O_APPEND | constants.O_NOFOLLOW;
  const file = await open(path, flags, 0o640);
  try {
    await file.chown(owner.uid, owner.gid);
  } finally {
    await file.close();
  }
  return path;
}
