/** Read-only images of folders, which the nodes see as disks. */
import { command } from './command.js';

/** Quick to make and to read under emulation rather than small; everything belongs to root. */
export async function makeSquashfs(folder: string, out: string, ...flags: string[]): Promise<void> {
  const quick = ['-comp', 'lz4', '-all-root', '-noappend', '-no-progress', '-quiet'];
  await command('mksquashfs', [folder, out, ...quick, ...flags]);
}
