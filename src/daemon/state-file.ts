/**
 * What a restarted daemon must know: which groups there were, on which processes, and at which
 * generation. docs/formats/state-file.md has the format: a line that names version, length and
 * checksum, then JSON. Written whole and durably; nothing of a damaged or foreign file is believed.
 */
import { createHash } from 'node:crypto';
import { open } from 'node:fs/promises';
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

export const stateVersion = 2;
const fileBytesMax = 16 * 1024 * 1024;
const headerPattern = /^replpage-groups (\d{1,9}) (\d{1,9}) ([0-9a-f]{64})$/;
/** Of the header line, amply. */
const headerBytesMax = 128;

const checksumOf = (body: Buffer): string => createHash('sha256').update(body).digest('hex');

export async function writeState(path: string, state: DaemonState): Promise<void> {
  const body = Buffer.from(`${JSON.stringify(state, null, 1)}\n`);
  const header = `replpage-groups ${stateVersion} ${body.length} ${checksumOf(body)}\n`;
  await replaceFile(path, Buffer.concat([Buffer.from(header), body]), 0o600);
}

/** undefined when there is none. Throws ERR_STATE_FILE. */
export async function readState(path: string): Promise<DaemonState | undefined> {
  try {
    return checkState(JSON.parse(bodyOf(await readBounded(path)).toString('utf8')));
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return undefined;
    throw new ReplicationError(
      'ERR_STATE_FILE',
      `cannot read the groups from ${path}: ${describe(error)}`,
    );
  }
}

async function readBounded(path: string): Promise<Buffer> {
  const file = await open(path, 'r');
  try {
    const { size } = await file.stat();
    if (size > fileBytesMax) throw new Error('it is too large');
    return await file.readFile();
  } finally {
    await file.close();
  }
}

/** What follows the header, as long and with the checksum that the header says. */
function bodyOf(file: Buffer): Buffer {
  const end = file.subarray(0, headerBytesMax).indexOf('\n');
  const header = headerPattern.exec(file.toString('latin1', 0, Math.max(0, end)));
  if (header === null) throw new Error('it does not begin as a list of groups does');
  const [, version, length, checksum] = header;
  if (Number(version) !== stateVersion) {
    throw new Error(`its version is ${version}, known is ${stateVersion}`);
  }
  const body = file.subarray(end + 1);
  if (body.length !== Number(length)) {
    throw new Error(`it has ${body.length} bytes of groups instead of ${length}`);
  }
  if (checksumOf(body) !== checksum) throw new Error('its checksum is wrong');
  return body;
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
