/** `replpage restore`: what is checked before a checkpoint runs again, and as what group it does. */
import { randomBytes } from 'node:crypto';
import { basename } from 'node:path';
import { protectDefaults, type RestoreRequest } from '../api/schema.js';
import { describe, hasCode, isSystemError, ReplicationError } from '../base/errors.js';
import type { GroupHost, GroupSpec, Owner } from '../capture/group-spec.js';
import type { NativeAddon } from '../native/binding.js';
import type { NativeCheckpointPlace, NativeManifest } from '../native/checkpoint.js';
import type { PromotionReport } from '../native/group.js';
import type { KeeperStatus } from '../native/keeper-status.js';
import { defaultOutput } from './new-spec.js';
import { bootId, isAlive, readProcess } from './process-facts.js';

type Native = Pick<NativeAddon, 'findCheckpoint' | 'restoreCheckpoint'>;

/** A checkpoint, and how it was reached. */
export interface Found {
  readonly place: NativeCheckpointPlace;
  readonly manifest: NativeManifest;
}

/**
 * Root may restore anything. Who else may is told by the manifest, which is to be believed only under
 * the daemon's own key: whoever has a key can write any checkpoint, one that runs as root too.
 * Throws ERR_DENIED, ERR_STORE, ERR_STATE.
 */
export async function findRestorable(
  native: Native,
  host: Pick<GroupHost, 'store'>,
  owner: Owner,
  request: RestoreRequest,
): Promise<Found> {
  if (owner.uid !== 0 && request.key !== undefined) {
    throw new ReplicationError('ERR_DENIED', `user ${owner.uid} may not restore with a key`, {
      advice: 'only root may, since a checkpoint can hold what runs as anybody',
    });
  }
  const { pagerPath, keyPath, allowMemoryFileSystems } = host.store;
  const place: NativeCheckpointPlace = {
    pagerPath,
    store: request.store,
    name: request.from,
    id: request.id ?? '',
    keyPath,
    keyText: request.key ?? '',
    asOwner: owner.uid !== 0,
    ...owner,
    allowMemoryFileSystems,
  };
  const manifest = await native.findCheckpoint(place).catch((error: unknown) => {
    throw asRestoreError(error, request);
  });
  if (owner.uid !== 0 && manifest.uid !== owner.uid) {
    throw new ReplicationError('ERR_DENIED', `user ${owner.uid} may not restore ${request.from}`, {
      advice: `it belongs to user ${manifest.uid}`,
    });
  }
  return { place: { ...place, id: manifest.id }, manifest };
}

/** Native rejections in words of our own. */
export function asRestoreError(error: unknown, { store, from }: RestoreRequest): ReplicationError {
  if (error instanceof ReplicationError) return error;
  const message = `cannot restore ${store}/${from}: ${describe(error)}`;
  if (hasCode(error, 'ERR_STORE')) {
    return new ReplicationError('ERR_STORE', message, {
      advice: /another key/.test(message)
        ? 'name the key of the machine that wrote it: --key FILE (replpage key export there)'
        : 'nothing runs; an earlier checkpoint is taken with --id',
    });
  }
  if (hasCode(error, 'ENOENT') && isSystemError(error) && /key file/.test(message)) {
    return new ReplicationError('ERR_STORE', `cannot restore ${store}/${from}: there is no key`, {
      advice: 'name the key of the machine that wrote it: --key FILE (replpage key export there)',
    });
  }
  if (/Stale file handle|ESTALE/.test(message)) {
    return new ReplicationError('ERR_FILES_CHANGED', message, {
      advice: 'a file that it had open has changed since; --files keep takes files as they are now',
    });
  }
  return new ReplicationError('ERR_NATIVE', message, { advice: 'nothing runs' });
}

/** What the checkpoint was taken of, and all that came of that. */
export function originsOf({ groupId, options }: NativeManifest): readonly string[] {
  const { origin } = parseOptions(options);
  return typeof origin === 'string' ? [groupId, origin] : [groupId];
}

/**
 * Whether the very processes run here already (rule 3; of other machines the caller alone knows).
 * Throws ERR_GROUP_EXISTS.
 */
export async function checkGone(
  manifest: NativeManifest,
  keepers: readonly string[],
  ask: (socket: string) => Promise<KeeperStatus>,
): Promise<void> {
  const facts = manifest.bootId === bootId() ? readProcess(manifest.hostPid) : undefined;
  if (isAlive(facts) && facts.startTime === manifest.startTime) throw runsHere(manifest, facts.pid);
  for (const socket of keepers) {
    const status = await ask(socket).catch(() => undefined);
    if (status === undefined || status.exited || status.hostPid <= 0) continue;
    if (status.state === 'promoted') throw runsHere(manifest, status.hostPid);
  }
}

function runsHere({ name }: NativeManifest, pid: number): ReplicationError {
  return new ReplicationError('ERR_GROUP_EXISTS', `${name} runs here still, as process ${pid}`, {
    advice: 'end it first: two of them would use the same files and addresses',
  });
}

/** As it was protected with, under the name that is asked for now. */
export function restoredSpec(
  manifest: NativeManifest,
  request: RestoreRequest,
  caller: Owner,
  logDir: string,
): GroupSpec {
  const options = parseOptions(manifest.options) as Partial<GroupSpec>;
  const name = request.name ?? request.from;
  const { uid, gid } = manifest;
  const groups = caller.uid === uid ? caller.groups : (options.owner?.groups ?? []);
  const stdio = options.stdio ?? null;
  const usual = stdio !== null && basename(stdio) === `${manifest.name}.log`;
  return {
    ...protectDefaults,
    pidfile: undefined,
    onPromote: undefined,
    onFence: undefined,
    store: undefined,
    ...options,
    stdio: usual ? defaultOutput(logDir, name) : stdio,
    files: request.files ?? options.files ?? 'refuse',
    // A checkpoint is not the right to run: another node may have the address.
    vip: undefined,
    name,
    storeId: randomBytes(8).toString('hex'),
    origin: originsOf(manifest).at(-1),
    owner: { uid, gid, groups },
  };
}

function parseOptions(text: string): Record<string, unknown> {
  const value: unknown = JSON.parse(text);
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) {
    return value as Record<string, unknown>;
  }
  throw new ReplicationError('ERR_STORE', 'the options in the checkpoint are not understood');
}

/** Builds it and lets it run. Throws ERR_STORE, ERR_FILES_CHANGED, ERR_NATIVE. */
export async function runCheckpoint(
  native: Native,
  host: Pick<GroupHost, 'paths' | 'limits'>,
  { place }: Found,
  { spec, generation }: { readonly spec: GroupSpec; readonly generation: number },
  request: RestoreRequest,
): Promise<PromotionReport> {
  const { keeperPath, runtimeDir, spillDir } = host.paths;
  const { stagingBytesMax, spillBytesMax } = host.limits;
  const { name, stdio, files, owner } = spec;
  const options = { place, name, generation, keeperPath, runtimeDir, spillDir, stdio, files };
  try {
    const limits = { stagingBytesMax, spillBytesMax };
    return await native.restoreCheckpoint({ ...options, ...owner, ...limits, vip: null });
  } catch (error) {
    throw asRestoreError(error, request);
  }
}
