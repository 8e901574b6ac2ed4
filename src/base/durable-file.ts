/** Reads a file within a limit, and replaces one so that after any crash it is wholly the old or wholly the new one. */
import { open, rename, rm, unlink } from 'node:fs/promises';
import { dirname } from 'node:path';
import { hasCode } from './errors.js';

/** Temp, fsync, rename, fsync of the folder: without the last the new name may not survive. */
export async function replaceFile(
  path: string,
  content: string | Buffer,
  mode: number,
): Promise<void> {
  const fresh = `${path}.new`;
  // Not `rm`: that would remove a folder that somebody puts there just now.
  await unlink(fresh).catch((error: unknown) => {
    if (!hasCode(error, 'ENOENT')) throw error;
  });
  const file = await open(fresh, 'wx', mode);
  try {
    try {
      await file.writeFile(content);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(fresh, path);
  } catch (error) {
    // Half a file is of no use, and may hold the last room on the disk.
    await rm(fresh, { force: true }).catch(() => undefined);
    throw error;
  }
  const folder = await open(dirname(path), 'r');
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

/** Throws when it is longer than `bytesMax`. */
export async function readWhole(path: string, bytesMax: number): Promise<Buffer> {
  const file = await open(path, 'r');
  try {
    const { size } = await file.stat();
    if (size > bytesMax) throw new Error('it is too large');
    return await file.readFile();
  } finally {
    await file.close();
  }
}
