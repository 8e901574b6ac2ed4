/** Makes folders for good or says why not. */
import { mkdir, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { describe, hasCode, ReplicationError } from './errors.js';

/**
 * With all folders above it that are missing; one that is there is left as it is. Node's own
 * recursive mkdir goes on for ever where nothing can be made, as below /proc.
 * Throws ERR_FOLDER; `what` says what it is for, as in "the log folder".
 */
export async function makeFolder(path: string, mode: number, what: string): Promise<void> {
  try {
    await makeAll(path, mode);
  } catch (error) {
    throw new ReplicationError('ERR_FOLDER', `cannot make ${what} ${path}: ${describe(error)}`, {
      advice: 'give another folder, or make that one',
    });
  }
}

async function makeAll(path: string, mode: number): Promise<void> {
  const made = await makeOne(path, mode);
  if (made) return;
  const above = dirname(path);
  if (above !== path && !(await isFolder(above))) await makeAll(above, mode);
  await mkdir(path, { mode });
}

/** False where a folder above is missing. */
async function makeOne(path: string, mode: number): Promise<boolean> {
  try {
    await mkdir(path, { mode });
    return true;
  } catch (error) {
    if (hasCode(error, 'EEXIST') && (await isFolder(path))) return true;
    if (hasCode(error, 'ENOENT')) return false;
    throw error;
  }
}

async function isFolder(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isDirectory();
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return false;
    throw error;
  }
}
