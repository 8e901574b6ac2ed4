/** Processes as /proc shows them, and ending those that belong to one test. */
import { readdir, readFile, readlink } from 'node:fs/promises';
import { waitFor } from './wait-for.js';

async function readOr(path: string): Promise<string> {
  return readFile(path, 'latin1').catch(() => '');
}

/** State letter of a process ('R', 'S', 'T', 'Z' ...), undefined when there is none. */
export async function stateOf(pid: number): Promise<string | undefined> {
  const stat = await readOr(`/proc/${pid}/stat`);
  return stat === '' ? undefined : stat.slice(stat.lastIndexOf(')') + 2, stat.lastIndexOf(')') + 3);
}

export async function isRunning(pid: number): Promise<boolean> {
  const state = await stateOf(pid);
  return state !== undefined && state !== 'Z' && state !== 'X';
}

export async function statusField(pid: number, name: string): Promise<string | undefined> {
  const status = await readOr(`/proc/${pid}/status`);
  return new RegExp(`^${name}:[ \\t]*(.*)$`, 'm').exec(status)?.[1];
}

/** Resident memory without the pages of files. */
export async function anonymousBytes(pid: number): Promise<number> {
  return Number((await statusField(pid, 'RssAnon'))?.split(' ')[0] ?? 0) * 1024;
}

export async function childrenOf(pid: number): Promise<number[]> {
  const tasks = await readdir(`/proc/${pid}/task`).catch(() => []);
  const lists = await Promise.all(tasks.map((tid) => readOr(`/proc/${pid}/task/${tid}/children`)));
  return lists.flatMap((list) => list.trim().split(' ').filter(Boolean).map(Number));
}

export async function descendantsOf(pid: number): Promise<number[]> {
  const children = await childrenOf(pid);
  const below = await Promise.all(children.map(descendantsOf));
  return [...children, ...below.flat()];
}

/** False when there is no such process any more. */
export function sendSignal(pid: number, signal: NodeJS.Signals | number): boolean {
  try {
    return process.kill(pid, signal);
  } catch {
    return false;
  }
}

/**
 * The keepers, holders and standing-by replicas that have files of `folder` open, with what is below
 * them: neither their arguments nor their environment tell whose they are.
 */
export async function keepersOf(folder: string): Promise<number[]> {
  const found = new Set<number>();
  for (const name of await readdir('/proc')) {
    const pid = Number(name);
    if (!Number.isInteger(pid)) continue;
    const program = await readlink(`/proc/${pid}/exe`).catch(() => '');
    if (!program.includes('replpage-keeper')) continue;
    const fds = await readdir(`/proc/${pid}/fd`).catch(() => []);
    const paths = await Promise.all(
      fds.map((fd) => readlink(`/proc/${pid}/fd/${fd}`).catch(() => '')),
    );
    if (!paths.some((path) => path.startsWith(folder))) continue;
    for (const each of [pid, ...(await descendantsOf(pid))]) found.add(each);
  }
  return [...found];
}

/** Every process that names `folder` in some way: see below, and keepersOf. */
export async function processesOf(folder: string): Promise<{ pid: number; what: string }[]> {
  const found: { pid: number; what: string }[] = [];
  const keepers = await keepersOf(folder);
  for (const name of await readdir('/proc')) {
    const pid = Number(name);
    if (!Number.isInteger(pid) || pid === process.pid) continue;
    const state = await stateOf(pid);
    // A main thread may have ended before others, of which the kernel tells then.
    const threads = await readdir(`/proc/${pid}/task`).catch(() => []);
    if (state === undefined || (state === 'Z' && threads.length < 2)) continue;
    const thread = `/proc/${pid}/task/${threads.at(-1) ?? pid}`;
    const [cmdline, environ, cwd] = await Promise.all([
      readOr(`${thread}/cmdline`),
      readOr(`${thread}/environ`),
      readlink(`${thread}/cwd`).catch(() => ''),
    ]);
    if (keepers.includes(pid) || [cmdline, environ, cwd].some((text) => text.includes(folder))) {
      found.push({ pid, what: `${state} ${cmdline.replaceAll('\0', ' ').slice(0, 200)}` });
    }
  }
  return found;
}

/** Kills them all, and those that they start meanwhile. Gives what would not die. */
export async function endProcessesOf(folder: string): Promise<string[]> {
  let left: { pid: number; what: string }[] = [];
  try {
    await waitFor(
      async () => {
        left = await processesOf(folder);
        for (const { pid } of left) sendSignal(pid, 'SIGKILL');
        return left.length === 0;
      },
      15_000,
      'processes are left',
    );
    return [];
  } catch {
    return left.map(({ pid, what }) => `${pid} ${what}`);
  }
}
