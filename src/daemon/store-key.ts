/** The key of the daemon's page stores, for whoever may read everybody's memory anyway. */
import type { Caller } from '../api/server.js';
import type { KeyReport } from '../api/schema.js';
import { hasCode, ReplicationError } from '../base/errors.js';
import type { NativeAddon } from '../native/binding.js';

/** Throws ERR_DENIED to all but root, ERR_STATE when there is no key yet. */
export function exportedKey(
  caller: Pick<Caller, 'uid'>,
  path: string,
  native: Pick<NativeAddon, 'storeKeyText'>,
): KeyReport {
  if (caller.uid !== 0) {
    throw new ReplicationError('ERR_DENIED', `user ${caller.uid} may not have the key`, {
      advice: 'it opens the memory of every process in the page store: ask root for it',
    });
  }
  try {
    return { key: native.storeKeyText(path) };
  } catch (error) {
    if (!hasCode(error, 'ENOENT')) throw error;
    throw new ReplicationError('ERR_STATE', `there is no key yet at ${path}`, {
      advice: 'it is made with the first group that is protected with --ram, or checkpointed',
    });
  }
}
