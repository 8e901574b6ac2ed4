/** Starts a daemon for this machine when none answers, as `protect` does. */
import { spawn } from 'node:child_process';
import { open, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { systemClock } from '../base/clock.js';
import { hasCode, ReplicationError } from '../base/errors.js';
import { makeFolder } from '../base/folder.js';
import type { Context } from './context.js';

const startMs = 15_000;

/** Gives the pid of the daemon that was started, undefined when one answers already. */
export async function ensureDaemon(context: Context): Promise<number | undefined> {
  try {
    await context.client.status();
    return undefined;
  } catch (error) {
    if (!hasCode(error, 'ERR_NO_DAEMON')) throw error;
    if (process.getuid?.() !== 0) throw error;
  }
  const logPath = join(context.runtimeDir, 'daemon.log');
  await makeFolder(context.runtimeDir, 0o755, 'the runtime folder');
  // Begun anew with each daemon, and only warnings go there: it stays small.
  const log = await open(logPath, 'w', 0o640);
  const args = [process.argv[1] ?? '', 'daemon', '--runtime-dir', context.runtimeDir];
  const child = spawn(process.execPath, [...args, '--log-level', 'warn'], {
    cwd: '/',
    detached: true,
    stdio: ['ignore', log.fd, log.fd],
  });
  await log.close();
  await answering(context, child, logPath);
  child.unref();
  return child.pid;
}

async function answering(
  context: Context,
  child: ReturnType<typeof spawn>,
  logPath: string,
): Promise<void> {
  let failed: string | undefined;
  child.once('error', (error) => (failed = error.message));
  child.once('exit', (status, signal) => (failed = `it ended with ${signal ?? status}`));
  const deadline = systemClock.nowMs() + startMs;
  while (systemClock.nowMs() < deadline) {
    try {
      await context.client.status();
      return;
    } catch (error) {
      if (!hasCode(error, 'ERR_NO_DAEMON')) throw error;
    }
    if (failed !== undefined) break;
    await systemClock.sleep(20);
  }
  const last = (await readFile(logPath, 'utf8').catch(() => '')).trim().split('\n').slice(-5);
  const why = failed ?? `it did not answer within ${startMs / 1000} s`;
  throw new ReplicationError('ERR_NO_DAEMON', `cannot start a daemon: ${why}\n${last.join('\n')}`, {
    advice: `see ${logPath}, or run it in the foreground: replpage daemon`,
  });
}
