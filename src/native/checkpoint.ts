/** What the native side takes and gives about checkpoints. */
import type { NativePagingOptions, NativeReplicaOptions } from './group.js';

export interface NativeCheckpointRequest {
  /** Used where the group has no paging. */
  readonly store: NativePagingOptions;
  /** Of the group, for whoever restores it. */
  readonly options: string;
  /** Whether earlier checkpoints of the group stay. */
  readonly keep: boolean;
}

export interface NativeCheckpointReport {
  readonly id: string;
  readonly epoch: number;
  /** Pages, for this checkpoint. */
  readonly writtenBytes: number;
  /** Pages that the store had before. */
  readonly coldBytes: number;
  /** On disk, with what it shares with the group. */
  readonly storedBytes: number;
}

export interface NativeCheckpointPlace {
  readonly pagerPath: string;
  readonly store: string;
  readonly name: string;
  /** Empty: the newest. */
  readonly id: string;
  readonly keyPath: string;
  /** As text, instead of the file; empty: none. */
  readonly keyText: string;
  /** Whether the store is opened with these rights instead of ours. */
  readonly asOwner: boolean;
  readonly uid: number;
  readonly gid: number;
  readonly groups: readonly number[];
  readonly allowMemoryFileSystems: boolean;
}

export interface NativeRemovedCheckpoints {
  /** With spaces between them. */
  readonly ids: string;
  readonly freedBytes: number;
}

export interface NativeManifest {
  readonly id: string;
  readonly name: string;
  /** 16 hexadecimal digits, of the protection that it was taken of. */
  readonly groupId: string;
  readonly epoch: number;
  /** Wall time, since 1970. */
  readonly takenMs: number;
  readonly uid: number;
  readonly gid: number;
  readonly options: string;
  /** Of the machine and the root process there. */
  readonly bootId: string;
  readonly hostPid: number;
  readonly startTime: string;
  /** That a restore need not wait for, at most. */
  readonly coldBytes: number;
}

export interface NativeRestoreOptions extends NativeReplicaOptions {
  readonly place: NativeCheckpointPlace;
}
