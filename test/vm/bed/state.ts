/**
 * What exists of a bed, written down before it is made, so that whoever comes later can end it: the
 * tool may be killed at any moment.
 */
import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { BedError, reasonOf } from './bed-error.js';
import { removeNetwork } from './network.js';
import { end, identify, lives, type ProcessId } from './processes.js';
import type { Machine } from './qemu.js';

export interface NodeState {
  readonly number: number;
  /** Undefined before the start and after a crash. */
  readonly process?: ProcessId;
}

export interface BedState {
  readonly name: string;
  /** The bed ends with this process; undefined: it stays until it is taken down. */
  readonly owner?: ProcessId;
  readonly kernel: string;
  readonly machine: Machine;
  readonly nodes: readonly NodeState[];
}

/** Short, since the paths of sockets are. */
const bedsFolder = path.join(tmpdir(), `replpage-vm-${process.getuid?.() ?? 0}`);

export const folderOf = (bed: string): string => path.join(bedsFolder, bed);

const stateFile = (bed: string): string => path.join(folderOf(bed), 'state.json');

/** @throws BedError when there is a bed of this name already */
export function claim(state: BedState): void {
  mkdirSync(bedsFolder, { recursive: true, mode: 0o700 });
  try {
    mkdirSync(folderOf(state.name));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    throw new BedError(`there is a bed ${state.name} already: npm run vm -- down ends it`);
  }
  writeState(state);
}

export function writeState(state: BedState): void {
  const file = stateFile(state.name);
  writeFileSync(`${file}.new`, JSON.stringify(state, null, 1));
  renameSync(`${file}.new`, file);
}

/** Undefined where there is none, or it was never written. */
export function readState(bed: string): BedState | undefined {
  try {
    return JSON.parse(readFileSync(stateFile(bed), 'utf8')) as BedState;
  } catch {
    return undefined;
  }
}

export function bedNames(): string[] {
  try {
    return readdirSync(bedsFolder);
  } catch {
    return [];
  }
}

/** From the files that QEMU itself writes: a process counts only when it was given that very file. */
function processesByFile(folder: string): ProcessId[] {
  const found: ProcessId[] = [];
  for (const name of readdirSync(folder).filter((each) => each.endsWith('.pid'))) {
    const file = path.join(folder, name);
    const pid = Number(readFileSync(file, 'utf8'));
    const id = identify(pid);
    if (id === undefined) continue;
    const told = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0');
    if (told.includes(file)) found.push(id);
  }
  return found;
}

/** Ends all that belongs to a bed, whoever made it. Gives what could not be ended. */
export async function dismantle(bed: string): Promise<string[]> {
  const left: string[] = [];
  const folder = folderOf(bed);
  const known = readState(bed)?.nodes.flatMap((node) => node.process ?? []) ?? [];
  for (const id of [...known, ...processesByFile(folder)]) {
    if (!(await end(id))) left.push(`process ${id.pid} of node in ${folder}`);
  }
  await removeNetwork(bed).catch((error: unknown) => left.push(reasonOf(error)));
  if (left.length === 0) rmSync(folder, { recursive: true, force: true });
  return left;
}

/** Ends beds whose owner is gone. A bed without a state is one whose owner died at once. */
export async function sweep(): Promise<void> {
  for (const name of bedNames()) {
    const state = readState(name);
    const abandoned = state === undefined || (state.owner && !lives(state.owner));
    if (abandoned) await dismantle(name);
  }
}
