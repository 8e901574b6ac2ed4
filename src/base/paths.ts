/** Where daemon and commands meet. */
import { join, resolve } from 'node:path';
import { ReplicationError } from './errors.js';

export const runtimeDirDefault = '/run/replpage';

/** Bytes of a Unix socket's path, without the zero byte at its end: unix(7). */
export const socketPathBytesMax = 107;

/**
 * A path as the user gave it, made absolute. Throws ERR_USAGE for an empty one, which an unset
 * variable of a script gives and which would otherwise be the folder that the user stands in.
 */
export function givenPath(option: string, text: string): string {
  if (text !== '') return resolve(text);
  throw new ReplicationError('ERR_USAGE', `${option}: the path is empty`, {
    advice: `give a path, or leave ${option} out`,
  });
}

/** Flag, then REPLPAGE_* variable, of which an empty one counts as unset. Throws ERR_USAGE. */
export function givenFolder(
  option: string,
  flag: string | undefined,
  env: Readonly<Record<string, string | undefined>>,
): string | undefined {
  if (flag !== undefined) return givenPath(`--${option}`, flag);
  const variable = env[`REPLPAGE_${option.replaceAll('-', '_').toUpperCase()}`] ?? '';
  return variable === '' ? undefined : resolve(variable);
}

/** Throws ERR_USAGE where a socket's path would be cut off, and lead somewhere else. */
export function runtimeDirOf(
  flag: string | undefined,
  env: Readonly<Record<string, string | undefined>>,
): string {
  const dir = givenFolder('runtime-dir', flag, env) ?? runtimeDirDefault;
  // The socket has another name, `.new`, for a moment.
  const bytesMax = socketPathBytesMax - Buffer.byteLength(`${socketPathOf('')}.new`) - 1;
  if (Buffer.byteLength(dir) <= bytesMax) return dir;
  throw new ReplicationError('ERR_USAGE', `--runtime-dir: ${dir} is too long for a socket in it`, {
    advice: `give one of up to ${bytesMax} bytes`,
  });
}

export const socketPathOf = (runtimeDir: string): string => join(runtimeDir, 'replpage.sock');
