/** A daemon with a page store on a disk, and groups whose replica holds a part of their memory. */
import { mkdtemp, readFile, readdir, rm } from 'node:fs/promises';
import path from 'node:path';
import type { ChildProcess } from 'node:child_process';
import type { GroupStatus } from '../../src/api/schema.js';
import type { Stage } from '../../test/support/stage.js';
import { letRun, waitFor } from '../../test/support/wait-for.js';
import { buildPrograms } from '../engine/work.js';
import type { Sizes } from './sizes.js';

export const coldAfter = ['--cold-after', '2s'];
const lookMs = 250;
/** Looks in a row that see nothing more leave. */
const settledLooks = 8;
const settleMsMax = 240_000;

/** Runs `measure` with the folder of a page store, which is removed afterwards. */
export async function withStore(
  stage: Stage,
  sizes: Sizes,
  measure: (store: string) => Promise<void>,
): Promise<void> {
  const store = await mkdtemp(path.join(sizes.disk, 'replpage-bench-store-'));
  try {
    await stage.startDaemon('--store', store);
    await measure(store);
  } finally {
    await stage.stopDaemon();
    await rm(store, { recursive: true, force: true });
  }
}

export async function segmentsOf(store: string): Promise<string[]> {
  const names = await readdir(store, { recursive: true });
  return names.filter((name) => /segment-\d+$/.test(name)).map((name) => path.join(store, name));
}

export interface Working {
  readonly child: ChildProcess;
  readonly pid: number;
  counters(): Promise<readonly number[]>;
}

let started = 0;

/** bench/programs/working_set.c, once it has filled its memory. */
export async function startWorking(
  stage: Stage,
  args: readonly (number | string)[],
): Promise<Working> {
  const programs = await buildPrograms();
  const file = stage.path(`working-set-${++started}.counters`);
  const child = stage.spawn(path.join(programs, 'working_set'), [file, ...args.map(String)]);
  const counters = async (): Promise<readonly number[]> => {
    const page = await readFile(file).catch(() => Buffer.alloc(0));
    const count = Math.floor(page.length / 8);
    return Array.from({ length: count }, (_, i) => Number(page.readBigUInt64LE(8 * i)));
  };
  const isFilled = async (): Promise<boolean> => ((await counters())[0] ?? 0) > 0;
  await waitFor(isFilled, 60_000, 'working_set does nothing');
  return { child, pid: child.pid ?? 0, counters };
}

export async function present(stage: Stage, name: string): Promise<GroupStatus> {
  const group = await stage.group(name);
  if (!group || !['protected', 'lagging'].includes(group.state)) {
    throw new Error(`${name} is ${group?.state ?? 'gone'}: ${group?.reason ?? ''}`);
  }
  return group;
}

/** Until nothing more gets cold; `share`: of the primary's memory, that shall at least be cold. */
export async function settle(stage: Stage, name: string, share: number): Promise<GroupStatus> {
  const deadline = performance.now() + settleMsMax;
  let calm = 0;
  let last = -1;
  while (performance.now() < deadline) {
    await letRun(lookMs);
    const group = await present(stage, name);
    const { coldBytes, primaryBytes } = group.memory;
    const enough = group.ram === 'all' || coldBytes >= share * primaryBytes;
    const still = enough && Math.abs(coldBytes - last) < 0.002 * primaryBytes;
    calm = still ? calm + 1 : 0;
    last = coldBytes;
    if (calm >= settledLooks) return group;
  }
  const group = await present(stage, name);
  throw new Error(`${name} does not settle: ${JSON.stringify([group.memory, group.paging])}`);
}

export const mebibytes = (bytes: number): number => bytes / 2 ** 20;
