/** Where daemon and commands meet. */
import { join, resolve } from 'node:path';
import { ReplicationError } from './errors.js';

export const runtimeDirDefault = '/run/replpage';

/** Bytes of a Unix socket's path, without the zero byte at its end: unix(7). */
export const socketPathBytesMax = 107;

/** Throws ERR_USAGE where a socket's path would be cut off, and lead somewhere else. */
export function runtimeDirOf(
  flag: string | undefined,
  env: Readonly<Record<string, string | undefined>>,
): string {
  const dir = resolve(flag ?? env['REPLPAGE_RUNTIME_DIR'] ?? runtimeDirDefault);
  // The socket has another name, `.new`, for a moment.
  const bytesMax = socketPathBytesMax - Buffer.byteLength(`${socketPathOf('')}.new`) - 1;
  if (Buffer.byteLength(dir) <= bytesMax) return dir;
  throw new ReplicationError('ERR_USAGE', `--runtime-dir: ${dir} is too long for a socket in it`, {
    advice: `give one of up to ${bytesMax} bytes`,
  });
}

export const socketPathOf = (runtimeDir: string): string => join(runtimeDir, 'replpage.sock');
