/**
 * What travels over the local socket about groups that go to other nodes (schema.ts has the rest and
 * the rules):
 *
 *   POST /v1/groups/NAME/move?to=NODE    -> GroupStatus
 *   POST /v1/groups/NAME/drill[?on=NODE] -> DrillReport
 *   POST /v1/nodes/NAME/drain            -> DrainReport, for root alone
 */

export interface DrainReport {
  readonly node: string;
  readonly moved: readonly { readonly name: string; readonly to: string }[];
  /** Those that still run here. */
  readonly left: readonly { readonly name: string; readonly why: string }[];
}

/** A replica was made, brought to an epoch, and tried out where nothing could notice. */
export interface DrillReport {
  readonly name: string;
  readonly node: string;
  /** 0: it got none. */
  readonly epoch: number;
  /** Why it would not run; null: it would. */
  readonly problem: string | null;
  /** From the order to its first instruction. */
  readonly promoteUs: number;
  /** Pages of the replica in sync there that were compared with the primary's; 0: there is none. */
  readonly comparedPages: number;
  readonly threads: number;
  /** Threads that got to a system call, which was not executed; the others still computed. */
  readonly calls: number;
  /** The whole drill, with the copy of the memory. */
  readonly ms: number;
}
