/** Whether a node has what a group needs of it: asked beside the primary, found out on the node. */
import { ReplicationError } from '../base/errors.js';
import { requirementsBytesMax, type PrepareReplica } from '../format/peer-messages.js';
import {
  checkRequirements,
  gatherRequirements,
  type Requirements,
} from '../native/requirements.js';
import type { PeerFile } from '../native/standby.js';
import { describeUnmet } from '../replica/describe-unmet.js';
import { descendantsOf } from './process-facts.js';

/** Of a process tree of this node. Throws ERR_LIMIT. */
export async function requirementsOf(hostPid: number): Promise<Requirements> {
  const requirements = await gatherRequirements([hostPid, ...descendantsOf(hostPid)]);
  if (requirements.bytes.length <= requirementsBytesMax) return requirements;
  const { length } = requirements.files;
  const message = `it uses ${length} files, more than can be compared with another node's`;
  throw new ReplicationError('ERR_LIMIT', message);
}

export interface CheckRules {
  readonly keepFiles: boolean;
  /** Programs and libraries may come from the primary's node. */
  readonly shipFiles: boolean;
  /** A path that is no data of the group. */
  readonly except: string | null;
  /** Where shipped content is. */
  readonly pathOf: (sha256: string) => string | undefined;
}

export interface NodeReadiness {
  /** Positions of files that are wanted first; the rest is then of no interest. */
  readonly wants: readonly number[];
  readonly peerFiles: readonly PeerFile[];
  /** Shipped content that they use. */
  readonly hashes: readonly string[];
}

/** Throws what this node lacks and cannot be shipped. */
export async function checkNode(
  { requirements, shipped }: Pick<PrepareReplica, 'requirements' | 'shipped'>,
  { keepFiles, shipFiles, except, pathOf }: CheckRules,
): Promise<NodeReadiness> {
  const bytes = Buffer.from(requirements, 'base64');
  const { unmet, files } = await checkRequirements(bytes, { keepFiles });
  const sent = new Map(shipped.map(({ file, sha256 }) => [file, sha256]));
  const copyOf = (file: number | undefined): string | undefined => {
    const sha256 = file === undefined ? undefined : sent.get(file);
    return sha256 === undefined ? undefined : pathOf(sha256);
  };
  const lacking = unmet.filter(
    ({ kind, what, file }) =>
      (kind !== 'dataFile' || what !== except) && copyOf(file) === undefined,
  );
  const wants = lacking.flatMap(({ file }) => (file === undefined ? [] : [file]));
  const shippable = shipFiles && wants.length === lacking.length;
  if (lacking.length > 0 && !shippable) throw new Error(describeUnmet(lacking));
  const covered = new Set(unmet.flatMap(({ file }) => (file === undefined ? [] : [file])));
  const peerFiles = files.flatMap(({ use, path, inode, onNetwork, written }, file) => {
    // What was removed while it was open travels in the image.
    if (use === 'directory' || path.endsWith(' (deleted)')) return [];
    const copy = covered.has(file) ? (copyOf(file) ?? '') : '';
    return [{ path, copy, inode, onNetwork, written }];
  });
  const hashes = [...covered].flatMap((file) => sent.get(file) ?? []);
  return { wants, peerFiles, hashes: [...new Set(hashes)] };
}
