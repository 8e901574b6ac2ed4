/** What there is to tell of a group at one moment. */
import type { QuantileWindow } from '../base/quantiles.js';
import type { EpochStats, PagingReport, ReplicaParts, StartReport } from '../native/group.js';
import type { KeeperStatus } from '../native/keeper-status.js';
import type { GroupSpec } from './group-spec.js';
import type { GroupCore } from './group-state.js';
import type { Pace } from './pace-policy.js';
import type { ReplicaOfGroup } from './replicas.js';

export interface PagingTurn extends PagingReport {
  /** What is done about it, in words. */
  readonly why: string;
}

export interface GroupSnapshot {
  readonly spec: GroupSpec;
  readonly core: GroupCore;
  readonly pace: Pace;
  readonly pauseUs: QuantileWindow;
  readonly replicas: readonly ReplicaOfGroup[];
  readonly lastEpoch: EpochStats | undefined;
  readonly start: StartReport | undefined;
  readonly lagMs: number;
  /** The last turn; undefined: everything stays in RAM. */
  readonly paging: PagingTurn | undefined;
  /** Of what was promoted, as its keeper last said; undefined: nothing is missing. */
  readonly refill: KeeperStatus | undefined;
  readonly counters: Record<string, number>;
  readonly parts: ReplicaParts | undefined;
}
