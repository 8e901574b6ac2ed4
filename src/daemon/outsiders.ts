/**
 * Tells outsiders what runs now: the pid file, the hook, and the file that takes a promoted
 * program's output. All with the rights of whoever asked, never the daemon's (rule 10).
 */
import { spawn } from 'node:child_process';
import { constants } from 'node:fs';
import { lstat, open, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Log } from '../base/log.js';
import { describe } from '../base/errors.js';
import type { Announcement, GroupSpec, Owner } from '../capture/group-spec.js';

const hookTimeoutMs = 30_000;
/** Of a hook's output, in the log. */
const outputBytesMax = 4096;

/** New name, then rename: whoever reads it never sees half a number. */
const writePidfile = 'umask 022; printf "%s\\n" "$2" >"$1.new.$$" && mv -f "$1.new.$$" "$1"';

export function announce(spec: GroupSpec, report: Announcement, log: Log): void {
  const { pidfile, onPromote, owner } = spec;
  if (pidfile !== undefined) {
    const own = log.child({ group: spec.name, pidfile });
    if (isOurselves(owner)) void writeOurPidfile(pidfile, report.hostPid, own);
    else {
      const command = ['/bin/sh', '-c', writePidfile, 'sh', pidfile, String(report.hostPid)];
      void run(command, owner, {}, own);
    }
  }
  if (onPromote === undefined) return;
  const env = {
    REPLPAGE_GROUP: spec.name,
    REPLPAGE_PID: String(report.pid),
    REPLPAGE_HOST_PID: String(report.hostPid),
    REPLPAGE_GENERATION: String(report.generation),
    REPLPAGE_EPOCH: String(report.epoch),
    REPLPAGE_EXACT: String(report.exact),
  };
  void run(['/bin/sh', '-c', onPromote], owner, env, log.child({ group: spec.name, onPromote }));
}

const isOurselves = (owner: Owner): boolean => owner.uid === process.getuid?.();

async function writeOurPidfile(path: string, hostPid: number, log: Log): Promise<void> {
  const fresh = `${path}.new.${process.pid}`;
  try {
    await rm(fresh, { force: true });
    await writeFile(fresh, `${hostPid}\n`, { mode: 0o644, flag: 'wx' });
    await rename(fresh, path);
    log.info({ hostPid }, 'outsider told');
  } catch (error) {
    log.warn({ hostPid, reason: describe(error) }, 'outsider could not be told');
  }
}

/** setpriv(1) sets the supplementary groups too. */
function withRights(command: readonly string[], owner: Owner): readonly string[] {
  if (isOurselves(owner)) return command;
  const groups = owner.groups.length > 0 ? `--groups=${owner.groups.join(',')}` : '--clear-groups';
  return ['setpriv', `--reuid=${owner.uid}`, `--regid=${owner.gid}`, groups, '--', ...command];
}

function run(
  command: readonly string[],
  owner: Owner,
  env: Readonly<Record<string, string>>,
  log: Log,
): Promise<void> {
  const [file = '', ...args] = withRights(command, owner);
  const path = process.env['PATH'] ?? '/usr/sbin:/usr/bin:/sbin:/bin';
  return new Promise<void>((resolve) => {
    // Throws, or gives a child without streams, where the machine or the arguments allow none.
    const child = spawn(file, args, {
      cwd: '/',
      env: { PATH: path, ...env },
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
    const limit = setTimeout(() => endGroup(child.pid), hookTimeoutMs);
    const done = (fields: object): void => {
      clearTimeout(limit);
      const failed = !('status' in fields) || fields.status !== 0;
      const all = { ...fields, output: output.slice(0, outputBytesMax) };
      if (failed) log.warn(all, 'outsider could not be told');
      else log.info(all, 'outsider told');
      resolve();
    };
    child.on('error', (error) => done({ reason: describe(error) }));
    child.on('close', (status, signal) => done({ status, signal }));
  }).catch((error: unknown) => {
    // Nobody's hook may end the daemon.
    log.warn({ reason: describe(error) }, 'outsider could not be told');
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
  if (left !== undefined && (left.uid !== owner.uid || !left.isFile())) await rm(path);
  const flags = constants.O_CREAT | constants.O_WRONLY | constants.O_APPEND | constants.O_NOFOLLOW;
  const file = await open(path, flags, 0o640);
  try {
    await file.chown(owner.uid, owner.gid);
  } finally {
    await file.close();
  }
  return path;
}
