/** `replpage checkpoint`, and `checkpoint --remove`. */
import type { CheckpointReport, RemovalReport, RemovalRequest } from '../api/schema.js';
import { describe, hasCode, ReplicationError } from '../base/errors.js';
import type { GroupHost, Owner } from '../capture/group-spec.js';
import type { Group } from '../capture/group.js';
import type { NativeAddon } from '../native/binding.js';

export async function checkpointReport(
  host: Pick<GroupHost, 'clock' | 'store' | 'note'>,
  group: Group,
  keep: boolean,
): Promise<CheckpointReport> {
  const { name, store } = group.spec;
  const beganMs = host.clock.nowMs();
  const report = await group.checkpoint(keep);
  const ms = Math.round(host.clock.nowMs() - beganMs);
  host.note(name, 'checkpoint taken', `${report.id}, epoch ${report.epoch}`);
  return { group: name, path: `${store ?? host.store.directory}/${name}`, ...report, ms };
}

interface RemovalOptions {
  readonly native: Pick<NativeAddon, 'removeCheckpoints'>;
  readonly host: Pick<GroupHost, 'store'>;
}

/**
 * With the caller's rights, as far as they are not root's. `group`: of that name, here. Throws
 * ERR_STORE, ERR_NATIVE.
 */
export async function removeCheckpoints(
  { native, host }: RemovalOptions,
  owner: Owner,
  request: RemovalRequest,
  group: Pick<Group, 'spec'> | undefined,
): Promise<RemovalReport> {
  const { pagerPath, allowMemoryFileSystems, directory } = host.store;
  const { from } = request;
  const store = request.store ?? group?.spec.store ?? directory;
  const path = `${store}/${from}`;
  try {
    const { ids, freedBytes } = await native.removeCheckpoints({
      pagerPath,
      store,
      name: from,
      id: request.id ?? '',
      keyPath: '',
      keyText: '',
      asOwner: owner.uid !== 0,
      ...owner,
      allowMemoryFileSystems,
    });
    return { path, ids: ids.split(' '), freedBytes };
  } catch (error) {
    throw asRemovalError(error, path);
  }
}

function asRemovalError(error: unknown, path: string): ReplicationError {
  const message = `cannot remove checkpoints of ${path}: ${describe(error)}`;
  if (!hasCode(error, 'ERR_STORE')) return new ReplicationError('ERR_NATIVE', message);
  return new ReplicationError('ERR_STORE', message, {
    advice: / is in use: /.test(message)
      ? 'nothing was removed; replpage status shows how much is still to be read'
      : 'replpage checkpoint says where it puts one; what belongs to the daemon only root removes',
  });
}
