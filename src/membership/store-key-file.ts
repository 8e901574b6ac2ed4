/**
 * The key of the page stores as a file, which native code makes with the first group that needs it
 * (native/core/store/store_key.h): 32 bytes, mode 0600, whole or not there.
 */
import { randomBytes } from 'node:crypto';
import { link, open, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { readWhole } from '../base/durable-file.js';
import { hasCode, ReplicationError } from '../base/errors.js';
import { storeKeyBytes } from '../format/recovery-key.js';

/** undefined when there is none. Throws ERR_STATE_FILE for one of a wrong length. */
export async function readStoreKey(path: string): Promise<Buffer | undefined> {
  try {
    const key = await readWhole(path, storeKeyBytes);
    if (key.length === storeKeyBytes) return key;
    throw new Error(`it has ${key.length} bytes`);
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return undefined;
    throw new ReplicationError('ERR_STATE_FILE', `cannot use the key in ${path}`, {
      cause: error,
      advice: `it must have ${storeKeyBytes} bytes: move it away, and replpage key import the right one`,
    });
  }
}

/** Never over another: gives the key that is there in the end. */
export async function makeStoreKey(
  path: string,
  key: Buffer = randomBytes(storeKeyBytes),
): Promise<Buffer> {
  const fresh = `${path}.new-${randomBytes(8).toString('hex')}`;
  try {
    const file = await open(fresh, 'wx', 0o600);
    try {
      await file.writeFile(key);
      await file.sync();
    } finally {
      await file.close();
    }
    await link(fresh, path).catch((error: unknown) => {
      if (!hasCode(error, 'EEXIST')) throw error;
    });
  } finally {
    await rm(fresh, { force: true });
  }
  const folder = await open(dirname(path), 'r');
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
  return (await readStoreKey(path)) ?? key;
}
