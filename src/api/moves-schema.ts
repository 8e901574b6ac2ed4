/**
 * What travels over the local socket about groups that go to other nodes (schema.ts has the rest and
 * the rules):
 *
 *   POST /v1/groups/NAME/move?to=NODE    -> GroupStatus
 *   POST /v1/nodes/NAME/drain            -> DrainReport, for root alone
 */

export interface DrainReport {
  readonly node: string;
  readonly moved: readonly { readonly name: string; readonly to: string }[];
  /** Those that still run here. */
  readonly left: readonly { readonly name: string; readonly why: string }[];
}
