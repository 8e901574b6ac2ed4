/**
 * What a restarted daemon must know: which groups there were, on which processes, and at which
 * generation. docs/formats/state-file.md has the format: a line that names version, length and
 * checksum, then JSON. Written whole and durably; nothing of a damaged or foreign file is believed.
 */
import { readWhole, replaceFile } from '../base/durable-file.js';
import { describe, hasCode, ReplicationError } from '../base/errors.js';
import type { GroupSpec } from '../capture/group-spec.js';
import type { GroupCore } from '../capture/group-state.js';
import type { AddressRecord } from './service-addresses.js';
import { formatChecked, parseChecked } from '../format/checked-file.js';

export interface GroupRecord {
  readonly spec: GroupSpec;
  readonly core: GroupCore;
  /** Of the root process: with `core.hostPid` and the boot it names a process for good. */
  readonly startTime: string;
  /** Its service address, where that was taken. */
  readonly address?: AddressRecord | undefined;
}

export interface DaemonState {
  readonly bootId: string;
  readonly groups: readonly GroupRecord[];
}

export const stateVersion = 2;
const fileBytesMax = 16 * 1024 * 1024;
const kind = { mark: 'replpage-groups', version: stateVersion } as const;

export async function writeState(path: string, state: DaemonState): Promise<void> {
  await replaceFile(path, formatChecked(kind, state), 0o600);
}

/** undefined when there is none. Throws ERR_STATE_FILE. */
export async function readState(path: string): Promise<DaemonState | undefined> {
  try {
    return checkState(parseChecked(kind, await readWhole(path, fileBytesMax)));
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return undefined;
    throw new ReplicationError(
      'ERR_STATE_FILE',
      `cannot read the groups from ${path}: ${describe(error)}`,
    );
  }
}

function checkState(value: unknown): DaemonState {
  const fields = asObject(value, 'the file');
  if (typeof fields['bootId'] !== 'string') throw new Error('bootId is missing');
  if (!Array.isArray(fields['groups'])) throw new Error('groups is no list');
  return { bootId: fields['bootId'], groups: fields['groups'].map(checkRecord) };
}

function checkRecord(value: unknown): GroupRecord {
  const record = asObject(value, 'a group');
  const spec = asObject(record['spec'], 'spec');
  const core = asObject(record['core'], 'core');
  const phase = asObject(core['phase'], 'phase');
  const ok =
    typeof record['startTime'] === 'string' &&
    typeof spec['name'] === 'string' &&
    typeof phase['kind'] === 'string' &&
    [core['hostPid'], core['generation'], core['epoch']].every(Number.isSafeInteger);
  if (!ok) throw new Error(`the record of group ${String(spec['name'])} is incomplete`);
  // What older daemons did not know.
  const known = { ram: 'all', coldAfterMs: 30_000, storeId: '0'.repeat(16), ...spec };
  return { ...record, spec: known } as unknown as GroupRecord;
}

function asObject(value: unknown, what: string): Record<string, unknown> {
  if (typeof value !== 'object' || value === null) throw new Error(`${what} is no object`);
  return value as Record<string, unknown>;
}
