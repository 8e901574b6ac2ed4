/** One daemon per runtime folder and per state folder: an flock(2) that the kernel drops when the daemon dies. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { open, type FileHandle } from 'node:fs/promises';
import { ReplicationError } from '../base/errors.js';

/** flock(1) exits with this when somebody else holds the lock. */
const conflict = 75;

/**
 * Node.js has no flock; flock(1) locks the open file description that it inherits, which stays
 * locked for as long as our own descriptor of it lives. Keep what is given until the end.
 * Throws ERR_DAEMON_RUNS.
 */
export async function takeLock(path: string): Promise<FileHandle> {
  const file = await open(path, 'a', 0o600);
  const child = spawn('flock', ['--nonblock', `--conflict-exit-code=${conflict}`, '3'], {
    stdio: ['ignore', 'ignore', 'ignore', file.fd],
  });
  const [status] = (await once(child, 'exit')) as [number | null];
  if (status === 0) return file;
  await file.close();
  if (status === conflict) {
    throw new ReplicationError('ERR_DAEMON_RUNS', `a daemon runs already (${path} is locked)`, {
      advice: 'give this one its own --runtime-dir and --state-dir, or end the other first',
    });
  }
  throw new ReplicationError('ERR_STATE_FILE', `flock ended with ${status} on ${path}`);
}
