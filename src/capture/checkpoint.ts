/** Takes a checkpoint of a group that is kept in step. */
import { ReplicationError } from '../base/errors.js';
import type { NativeCheckpointReport } from '../native/checkpoint.js';
import type { NativeGroup } from '../native/group.js';
import { asCheckpointError } from './group-errors.js';
import { homesOf, type GroupSpec, type StorePlace } from './group-spec.js';
import type { PhaseName } from './group-state.js';
import { storeOptions } from './paging-turns.js';

export interface CheckpointOf {
  readonly spec: GroupSpec;
  readonly place: StorePlace;
  /** undefined: nothing is kept in step. */
  readonly native: NativeGroup | undefined;
  readonly phase: PhaseName;
  /** Whether earlier checkpoints of the group stay. */
  readonly keep: boolean;
}

/** Epochs wait meanwhile. Throws ERR_STATE, ERR_STORE, ERR_REFUSED. */
export async function takeCheckpoint(of: CheckpointOf): Promise<NativeCheckpointReport> {
  const { spec, place, native, phase, keep } = of;
  try {
    if (native === undefined) throw new ReplicationError('ERR_STATE', `it is ${phase}`);
    if (!homesOf(spec).includes('self')) {
      throw new ReplicationError('ERR_STATE', 'its replica is on another node');
    }
    const store = storeOptions(spec, place, true);
    return await native.checkpoint({ store, options: JSON.stringify(spec), keep });
  } catch (error) {
    throw asCheckpointError(error, spec.name);
  }
}
