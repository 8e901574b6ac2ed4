/**
 * The typed face of the addon, and the only file that loads it. It is loaded on first use, so that
 * commands that only talk to the daemon work where the addon was not built.
 */
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { ReplicationError } from '../base/errors.js';
import type {
  NativeCheckpointPlace,
  NativeManifest,
  NativeRemovedCheckpoints,
  NativeRestoreOptions,
} from './checkpoint.js';
import type {
  NativeGroup,
  NativeGroupEvent,
  NativeGroupOptions,
  PromotionReport,
} from './group.js';
import type { RequirementCheck, Requirements } from './requirements.js';
import type { NativeServiceAddress } from './service-address.js';
import type { NativeCredentials, NativeStandby, StandbyEvent } from './standby.js';

export interface PeerCredentials {
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
}

export interface TraceVerdict {
  readonly allowed: boolean;
  readonly reason?: string;
}

export interface NativeAddon {
  readonly NativeGroup: new (
    options: NativeGroupOptions,
    onEvent: (event: NativeGroupEvent) => void,
  ) => NativeGroup;
  /** Throws ERR_BAD_ADDRESS, which says what is wrong with the text. */
  readonly ServiceAddress: new (text: string) => NativeServiceAddress;
  /** Listens. Throws a SystemError. */
  readonly NativeStandby: new (
    options: {
      readonly host: string;
      /** 0: any that is free. */
      readonly port: number;
      readonly credentials: NativeCredentials;
    },
    onEvent: (event: StandbyEvent) => void,
  ) => NativeStandby;
  /** SO_PEERCRED of a connected Unix socket: unix(7). Throws a SystemError. */
  peerCredentials(fd: number): PeerCredentials;
  /** The kernel's ptrace rule, applied to the caller instead of to us. */
  mayTrace(caller: PeerCredentials, targetPid: number): TraceVerdict;
  /** Rejects with ERR_STORE, and where there is no key with ENOENT. */
  findCheckpoint(place: NativeCheckpointPlace): Promise<NativeManifest>;
  /** Empty `id`: all of that name. Without a key. Rejects with ERR_STORE, nothing removed. */
  removeCheckpoints(place: NativeCheckpointPlace): Promise<NativeRemovedCheckpoints>;
  /** Resolves when it runs; nothing runs when it rejects. */
  restoreCheckpoint(options: NativeRestoreOptions): Promise<PromotionReport>;
  gatherRequirements(pids: readonly number[]): Promise<Requirements>;
  checkRequirements(
    bytes: Buffer,
    rules: { readonly keepFiles: boolean },
  ): Promise<RequirementCheck>;
  /** Of the file of a page store's key, as text. Throws a SystemError (ENOENT: there is none). */
  storeKeyText(path: string): string;
  /** What this kernel offers, found by trying, never by version. */
  probeKernel(): Record<string, boolean | string | number>;
}

// src/native and dist/native are equally deep.
const buildUrl = new URL('../../build/Release/', import.meta.url);

export const pagerPath = fileURLToPath(new URL('replpage-pager', buildUrl));
export const keeperPath = fileURLToPath(new URL('replpage-keeper', buildUrl));

let loaded: NativeAddon | undefined;

export function loadNative(): NativeAddon {
  const path = fileURLToPath(new URL('replpage.node', buildUrl));
  try {
    loaded ??= createRequire(import.meta.url)(path) as NativeAddon;
  } catch (cause) {
    throw new ReplicationError('ERR_NATIVE_MISSING', `cannot load the native addon ${path}`, {
      cause,
      advice: 'build it with: npm run build:native',
    });
  }
  return loaded;
}
