/**
 * What a restarted daemon must know: which groups there were, on which processes, and at which
 * generation. Written whole and durably; a damaged or newer file stops the daemon with a clear
 * error instead of a guess.
 */
import { readFile } from 'node:fs/promises';
import { describe, hasCode, ReplicationError } from '../base/errors.js';
import type { GroupSpec } from '../capture/group-spec.js';
import type { GroupCore } from '../capture/group-state.js';
import { replaceFile } from './durable-file.js';

export interface GroupRecord {
  readonly spec: GroupSpec;
  readonly core: GroupCore;
  /** Of the root process: with `core.hostPid` and the boot it names a process for good. */
  readonly startTime: string;
}

export interface DaemonState {
  readonly bootId: string;
  readonly groups: readonly GroupRecord[];
}

const stateVersion = 1;
const fileBytesMax = 16 * 1024 * 1024;

export async function writeState(path: string, state: DaemonState): Promise<void> {
  const text = `${JSON.stringify({ version: stateVersion, ...state }, null, 1)}\n`;
  await replaceFile(path, text, 0o600);
}

/** undefined when there is none. Throws ERR_STATE_FILE. */
export async function readState(path: string): Promise<DaemonState | undefined> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return undefined;
    throw damaged(path, describe(error));
  }
  if (text.length > fileBytesMax) throw damaged(path, 'it is too large');
  try {
    return checkState(JSON.parse(text));
  } catch (error) {
    throw damaged(path, describe(error));
  }
}

function damaged(path: string, why: string): ReplicationError {
  return new ReplicationError('ERR_STATE_FILE', `cannot read the groups from ${path}: ${why}`, {
    advice: 'move the file away to start without them; the processes themselves run on',
  });
}

function checkState(value: unknown): DaemonState {
  const fields = asObject(value, 'the file');
  if (fields['version'] !== stateVersion) {
    throw new Error(`its version is ${String(fields['version'])}, known is ${stateVersion}`);
  }
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
  return record as unknown as GroupRecord;
}

function asObject(value: unknown, what: string): Record<string, unknown> {
  if (typeof value !== 'object' || value === null) throw new Error(`${what} is no object`);
  return value as Record<string, unknown>;
}
