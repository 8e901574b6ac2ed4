/** Where daemon and commands meet. */
import { join, resolve } from 'node:path';

export const runtimeDirDefault = '/run/replpage';

export function runtimeDirOf(
  flag: string | undefined,
  env: Readonly<Record<string, string | undefined>>,
): string {
  return resolve(flag ?? env['REPLPAGE_RUNTIME_DIR'] ?? runtimeDirDefault);
}

export const socketPathOf = (runtimeDir: string): string => join(runtimeDir, 'replpage.sock');
