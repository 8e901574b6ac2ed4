/**
 * What exists of a bed, written down before it is made, so that whoever comes later can end it: the
 * tool may be killed at any moment.
 */
import { lstatSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { writeFileSync } from 'node:fs';
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

/** Becomes part of the names of files, sockets and a namespace. */
const nameForm = /^[A-Za-z0-9][A-Za-z0-9-]{0,39}$/;
/** A folder that is not yet a bed: its name tells who makes it. */
const freshForm = /^\.new-(\d+)-(\d+)$/;

export const folderOf = (bed: string): string => path.join(bedsFolder, bed);

const stateName = 'state.json';

/** @throws BedError when others could have written there what we are to believe */
function requireOwnFolder(): void {
  mkdirSync(bedsFolder, { recursive: true, mode: 0o700 });
  const { uid, mode } = lstatSync(bedsFolder);
  if (uid === (process.getuid?.() ?? 0) && (mode & 0o170022) === 0o040000) return;
  throw new BedError(`${bedsFolder} is not a folder that only this user writes: remove it`);
}

/** @throws BedError when there is a bed of this name already, or there can be none */
export function claim(state: BedState): void {
  const { name } = state;
  if (!nameForm.test(name)) throw new BedError(`a bed's name has letters, digits and -: ${name}`);
  requireOwnFolder();
  const self = identify(process.pid);
  const fresh = folderOf(`.new-${process.pid}-${self?.startTime ?? 0}`);
  try {
    mkdirSync(fresh);
    writeState(state, fresh);
    // It appears with its state, so that nobody takes it for an abandoned one.
    renameSync(fresh, folderOf(name));
  } catch (error) {
    rmSync(fresh, { recursive: true, force: true });
    if (!['EEXIST', 'ENOTEMPTY'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error;
    throw new BedError(`there is a bed ${name} already: npm run vm -- down --name=${name} ends it`);
  }
}

export function writeState(state: BedState, folder = folderOf(state.name)): void {
  const file = path.join(folder, stateName);
  writeFileSync(`${file}.new`, JSON.stringify(state, null, 1));
  renameSync(`${file}.new`, file);
}

/** Undefined where there is none, or it was never written. */
export function readState(bed: string): BedState | undefined {
  try {
    return JSON.parse(readFileSync(path.join(folderOf(bed), stateName), 'utf8')) as BedState;
  } catch {
    return undefined;
  }
}

/** Also folders of beds that are only being made. */
function folders(): string[] {
  try {
    requireOwnFolder();
    return readdirSync(bedsFolder);
  } catch (error) {
    if (error instanceof BedError) throw error;
    return [];
  }
}

export const bedNames = (): string[] => folders().filter((name) => nameForm.test(name));

/** Those that were told to write their pid into a file of this folder: nodes, whoever started them. */
function processesOf(folder: string): ProcessId[] {
  const found: ProcessId[] = [];
  for (const name of readdirSync('/proc').filter((each) => /^\d+$/.test(each))) {
    const id = identify(Number(name));
    if (id !== undefined && pidFileOf(name)?.startsWith(`${folder}/`)) found.push(id);
  }
  return found;
}

function pidFileOf(pid: string): string | undefined {
  try {
    const told = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0');
    return told[told.indexOf('-pidfile') + 1];
  } catch {
    return undefined;
  }
}

/** Ends all that belongs to a bed, whoever made it. Gives what could not be ended. */
export async function dismantle(bed: string): Promise<string[]> {
  const left: string[] = [];
  const folder = folderOf(bed);
  for (const id of processesOf(folder)) {
    if (!(await end(id))) left.push(`process ${id.pid} of node in ${folder}`);
  }
  await removeNetwork(bed).catch((error: unknown) => left.push(reasonOf(error)));
  if (left.length === 0) rmSync(folder, { recursive: true, force: true });
  return left;
}

/** Ends the beds that end with this process. */
export async function dismantleOwn(): Promise<string[]> {
  const own = bedNames().filter((name) => readState(name)?.owner?.pid === process.pid);
  return (await Promise.all(own.map(dismantle))).flat();
}

function isAbandoned(name: string): boolean {
  const [, pid, startTime] = freshForm.exec(name) ?? [];
  if (pid !== undefined && startTime !== undefined) return !lives({ pid: Number(pid), startTime });
  const state = readState(name);
  // A folder appears with its state, and loses it when it is removed.
  if (state === undefined) return true;
  return state.owner !== undefined && !lives(state.owner);
}

/** Ends beds whose owner is gone. */
export async function sweep(): Promise<void> {
  for (const name of folders()) if (isAbandoned(name)) await dismantle(name);
}
