/** Replicas in what travels over the local socket (schema.ts): of the node's groups, and kept for others. */

export interface ReplicaStatus {
  readonly node: string;
  readonly rank: number;
  readonly epoch: number;
  /** In sync, building, joining, out or promoting; only one that is in sync may be promoted. */
  readonly state: string;
  /** Why it is out; null: it is not. */
  readonly reason: string | null;
  readonly residentBytes: number;
  readonly keeperSocket: string;
}

/** A replica that this node keeps for another one. */
export interface StandbyStatus {
  readonly name: string;
  /** Where the primary runs, or ran. */
  readonly node: string;
  /** building, standby, cut off (from the primary's node), promoting. */
  readonly state: string;
  readonly generation: number;
  /** 0: none is committed yet, and there is nothing to promote. */
  readonly epoch: number;
  /** Since its last epoch was committed. */
  readonly lagMs: number;
  readonly residentBytes: number;
  readonly reason: string | null;
}
