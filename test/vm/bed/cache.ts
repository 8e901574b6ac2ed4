/**
 * What takes long to make is kept outside the repository, by a key made of all that went into it.
 * REPLPAGE_VM_CACHE names another folder.
 */
import { createHash } from 'node:crypto';
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statfsSync,
  statSync,
} from 'node:fs';
import { renameSync, rmSync, utimesSync } from 'node:fs';
import { homedir } from 'node:os';
import path from 'node:path';
import { BedError, reasonOf } from './bed-error.js';
import { identify } from './processes.js';

/** Of each kind, that many entries stay, the latest used ones. */
const kept = 4;
/** A kernel, its modules, the system and a saved state take about a third of this. */
const bytesNeeded = 2 * 2 ** 30;

export function cacheFolder(): string {
  const named = process.env['REPLPAGE_VM_CACHE'];
  if (named) return path.resolve(named);
  const base = process.env['XDG_CACHE_HOME'] ?? path.join(homedir(), '.cache');
  return path.join(base, 'replpage-vm');
}

export function keyOf(parts: readonly (string | Buffer)[]): string {
  const hash = createHash('sha256');
  for (const part of parts) hash.update(`${part.length}:`).update(part);
  return hash.digest('hex').slice(0, 20);
}

/** Of a large file: its name, size and time of change stand for what is in it. */
export function fingerprint(file: string): string {
  const { size, mtimeMs } = statSync(file);
  return `${file} ${size} ${mtimeMs}`;
}

/** One by one: with `recursive` Node.js goes on for ever where a parent cannot hold any (/proc). */
function makeFolder(folder: string): void {
  if (existsSync(folder)) return;
  makeFolder(path.dirname(folder));
  mkdirSync(folder);
}

/**
 * A folder of the cache, made where it is missing.
 * @throws BedError when it cannot be used
 */
export function usableFolder(...names: readonly string[]): string {
  const folder = path.join(cacheFolder(), ...names);
  try {
    makeFolder(folder);
    accessSync(folder, constants.W_OK | constants.X_OK);
    readdirSync(folder);
  } catch (error) {
    throw new BedError(
      `cannot use the cache folder ${folder}: ${reasonOf(error)}; name another with REPLPAGE_VM_CACHE`,
    );
  }
  return folder;
}

/** @throws BedError when the cache has no room for what is about to be made */
export function requireRoom(folder: string, bytes = bytesNeeded): void {
  makeFolder(folder);
  const { bavail, bsize } = statfsSync(folder);
  const free = bavail * bsize;
  if (free >= bytes) return;
  const mib = (count: number): number => Math.floor(count / 2 ** 20);
  throw new BedError(
    `${folder} has ${mib(free)} MiB free, ${mib(bytes)} MiB are needed: ` +
      'make room, or name another folder with REPLPAGE_VM_CACHE',
  );
}

/** Folders that a tool which is gone was still making. */
function removeAbandoned(folder: string): void {
  if (!statSync(folder, { throwIfNoEntry: false })?.isDirectory()) return;
  for (const name of readdirSync(folder)) {
    const [, pid, startTime] = /^\.new-(\d+)-(\d+)-/.exec(name) ?? [];
    if (pid === undefined || identify(Number(pid))?.startTime === startTime) continue;
    try {
      // What it had started may write there still.
      const patience = { maxRetries: 20, retryDelay: 100 };
      rmSync(path.join(folder, name), { recursive: true, force: true, ...patience });
    } catch {
      // Left to the next run.
    }
  }
}

function removeOldest(folder: string): void {
  const entries = readdirSync(folder)
    .filter((name) => !name.startsWith('.'))
    .map((name) => ({ name, found: statSync(path.join(folder, name), { throwIfNoEntry: false }) }))
    .flatMap(({ name, found }) => (found ? [{ name, used: found.mtimeMs }] : []))
    .sort((a, b) => b.used - a.used);
  for (const { name } of entries.slice(kept)) {
    rmSync(path.join(folder, name), { recursive: true, force: true });
  }
}

let made = 0;

/**
 * The folder of what `kind` and `key` stand for; where there is none, `make` fills a new one, which
 * appears whole or not at all.
 */
export async function cached(
  kind: string,
  key: string,
  make: (folder: string) => Promise<void>,
): Promise<string> {
  const folder = path.join(cacheFolder(), kind);
  const entry = path.join(folder, key);
  if (existsSync(entry)) {
    utimesSync(entry, new Date(), new Date());
    return entry;
  }
  usableFolder(kind);
  for (const each of readdirSync(cacheFolder())) removeAbandoned(path.join(cacheFolder(), each));
  requireRoom(cacheFolder());
  const own = `${process.pid}-${identify(process.pid)?.startTime ?? 0}-${++made}`;
  const fresh = path.join(folder, `.new-${own}`);
  mkdirSync(fresh);
  try {
    await make(fresh);
    renameSync(fresh, entry);
  } catch (error) {
    rmSync(fresh, { recursive: true, force: true });
    // Another tool was quicker.
    if (existsSync(entry)) return entry;
    if (error instanceof BedError) throw error;
    throw new BedError(`cannot make ${kind} in ${folder}: ${reasonOf(error)}`);
  }
  removeOldest(folder);
  return entry;
}

export function readText(file: string): string {
  return readFileSync(file, 'utf8');
}
