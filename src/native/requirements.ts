/** What a group needs of a node, gathered beside its primary and checked on a peer. */
import { loadNative } from './binding.js';

export type FileUse = 'executable' | 'mapped' | 'mappedShared' | 'open' | 'directory';

export interface RequiredFile {
  readonly use: FileUse;
  readonly path: string;
  /** Beside the primary: a link of /proc that leads to the very file; empty elsewhere. */
  readonly source: string;
  readonly sizeBytes: number;
  readonly device: bigint;
  readonly inode: bigint;
  /** Its file system is of a kind that nodes share. */
  readonly onNetwork: boolean;
  /** It is open or mapped for writing. */
  readonly written: boolean;
}

export interface Requirements {
  /** For a peer: docs/formats/requirements.md. */
  readonly bytes: Buffer;
  /** As in `bytes`, in the same order. */
  readonly files: readonly RequiredFile[];
}

export type UnmetKind =
  | 'fileMissing'
  | 'fileDiffers'
  | 'dataFile'
  | 'device'
  | 'processor'
  | 'xstate'
  | 'vdso'
  | 'machine'
  | 'limit'
  | 'bound';

export interface Unmet {
  readonly kind: UnmetKind;
  readonly what: string;
  readonly where: string;
  readonly why: string;
  readonly remedy: string;
  /** Position in `files` of one that may be shipped. */
  readonly file?: number;
}

export interface RequirementCheck {
  readonly unmet: readonly Unmet[];
  readonly files: readonly RequiredFile[];
}

/**
 * Of the processes with these pids, from /proc. Reads whole files that have no build id, once.
 * Rejects with a SystemError.
 */
export function gatherRequirements(pids: readonly number[]): Promise<Requirements> {
  return loadNative().gatherRequirements(pids);
}

/** What this node lacks. Rejects with ERR_FORMAT for bytes that are damaged or of another version. */
export function checkRequirements(
  bytes: Buffer,
  rules: { readonly keepFiles: boolean },
): Promise<RequirementCheck> {
  return loadNative().checkRequirements(bytes, rules);
}
