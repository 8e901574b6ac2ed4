/**
 * What /proc says about a process, read at once: a handful of small files, and only when something
 * is asked about it. proc(5) has the fields.
 */
import { readdirSync, readFileSync, readlinkSync, statfsSync, statSync } from 'node:fs';
import { runtimeDirDefault } from '../base/paths.js';

export interface ProcessFacts {
  readonly pid: number;
  readonly name: string;
  /** Of the main thread. */
  readonly state: string;
  readonly threads: number;
  readonly parent: number;
  /** Differs from `pid` when `pid` is a thread. */
  readonly threadGroup: number;
  /** As the process itself sees it: the innermost of NSpid. */
  readonly ownPid: number;
  readonly tracer: number;
  readonly kernelThread: boolean;
  /** Clock ticks since boot: with the pid it names a process for good. */
  readonly startTime: string;
  readonly executable: string | undefined;
  readonly cgroups: readonly string[];
}

/** PF_KTHREAD of the kernel's sched.h. */
const kernelThreadFlag = 0x00200000;

function readProc(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return undefined;
  }
}

/** undefined: no such process. */
export function readProcess(pid: number): ProcessFacts | undefined {
  const stat = readProc(`/proc/${pid}/stat`);
  const status = readProc(`/proc/${pid}/status`);
  if (stat === undefined || status === undefined) return undefined;
  // The name is in parentheses and may hold anything, closing parentheses too.
  const nameEnd = stat.lastIndexOf(')');
  const fields = stat.slice(nameEnd + 2).split(' ');
  const number = (key: string): number => Number(statusField(status, key)?.split(/\s+/).at(-1));
  return {
    pid,
    name: stat.slice(stat.indexOf('(') + 1, nameEnd),
    state: fields[0] ?? '?',
    threads: Number(fields[17]),
    parent: number('PPid'),
    threadGroup: number('Tgid'),
    ownPid: number('NSpid') || pid,
    tracer: number('TracerPid'),
    kernelThread: (Number(fields[6]) & kernelThreadFlag) !== 0,
    startTime: fields[19] ?? '',
    executable: readExecutable(pid),
    cgroups: (readProc(`/proc/${pid}/cgroup`) ?? '').split('\n').filter((line) => line !== ''),
  };
}

function statusField(status: string, key: string): string | undefined {
  // Not \s, which goes on to the next line where the value is empty.
  return new RegExp(`^${key}:[ \\t]*(.*)$`, 'm').exec(status)?.[1];
}

function readExecutable(pid: number): string | undefined {
  try {
    return readlinkSync(`/proc/${pid}/exe`);
  } catch {
    return undefined;
  }
}

/** Of a running replpage daemon (or one of its threads), where it has its socket. */
export function daemonRuntimeDir(pid: number): string | undefined {
  // The addon is what no other program has.
  if (!(readProc(`/proc/${pid}/maps`) ?? '').includes('/replpage.node\n')) return undefined;
  const args = (readProc(`/proc/${pid}/cmdline`) ?? '').split('\0');
  const at = args.findIndex((arg) => arg.startsWith('--runtime-dir'));
  const flag = args[at]?.split('=')[1] ?? args[at + 1];
  const environment = (readProc(`/proc/${pid}/environ`) ?? '').split('\0');
  const variable = environment.find((entry) => entry.startsWith('REPLPAGE_RUNTIME_DIR='));
  return (at >= 0 ? flag : variable?.split('=')[1]) ?? runtimeDirDefault;
}

const isDead = ({ state }: ProcessFacts): boolean => state === 'Z' || state === 'X';

export function isAlive(facts: ProcessFacts | undefined): facts is ProcessFacts {
  return facts !== undefined && (!isDead(facts) || hasLostMainThread(facts));
}

/** Its main thread has ended (pthread_exit in main), and others run on. */
export function hasLostMainThread(facts: ProcessFacts): boolean {
  return isDead(facts) && facts.threads > 1;
}

/** The process itself, its parent, and so on up to pid 1. */
export function ancestry(pid: number): readonly number[] {
  const line: number[] = [];
  for (let at = pid; at > 0 && !line.includes(at);) {
    line.push(at);
    at = readProcess(at)?.parent ?? 0;
  }
  return line;
}

/** Supplementary groups of a caller, undefined when it has gone or is of another user by now. */
export function supplementaryGroups(pid: number, uid: number): readonly number[] | undefined {
  const status = readProc(`/proc/${pid}/status`);
  if (status === undefined) return undefined;
  const uids = statusField(status, 'Uid')?.split(/\s+/).map(Number) ?? [];
  if (!uids.includes(uid)) return undefined;
  return (statusField(status, 'Groups') ?? '')
    .split(/\s+/)
    .filter((text) => text !== '')
    .map(Number);
}

export function bootId(): string {
  return (readProc('/proc/sys/kernel/random/boot_id') ?? '').trim();
}

const accessMode = 0o3;

/** Paths of regular files that the process has open for writing; those of its children are not. */
export function filesWritten(pid: number): readonly string[] {
  const found = new Set<string>();
  for (const fd of readFolder(`/proc/${pid}/fd`)) {
    const flags = /^flags:\s*([0-7]+)$/m.exec(readProc(`/proc/${pid}/fdinfo/${fd}`) ?? '')?.[1];
    if (flags === undefined || (parseInt(flags, 8) & accessMode) === 0) continue;
    try {
      const link = `/proc/${pid}/fd/${fd}`;
      if (statSync(link).isFile()) found.add(readlinkSync(link));
    } catch {
      // It was closed meanwhile.
    }
  }
  return [...found].filter((path) => path.startsWith('/') && !path.startsWith('/memfd:'));
}

export interface SharedFile {
  readonly path: string;
  /** On tmpfs, whose times do not tell when memory that is mapped was written. */
  readonly inMemory: boolean;
}

/** f_type of statfs(2): TMPFS_MAGIC and RAMFS_MAGIC. */
const memoryFileSystems = [0x01021994, 0x858458f6];

/** Files that the process has mapped shared and writable, as PostgreSQL has one in /dev/shm. */
export function filesShared(pid: number): readonly SharedFile[] {
  const paths = new Set<string>();
  for (const line of (readProc(`/proc/${pid}/maps`) ?? '').split('\n')) {
    const path = /^\S+ .w.s (?:\S+ +){3}(\/.*)$/.exec(line)?.[1];
    if (path !== undefined && !/^\/(?:memfd:|SYSV|dev\/zero)|\(deleted\)$/.test(path))
      paths.add(path);
  }
  return [...paths].flatMap((path) => {
    try {
      if (!statSync(path).isFile()) return [];
      return [{ path, inMemory: memoryFileSystems.includes(statfsSync(path).type) }];
    } catch {
      return [];
    }
  });
}

/** Names of a process and its descendants, by the pid that each has for itself. */
export function namesInTree(root: number): ReadonlyMap<number, string> {
  const names = new Map<number, string>();
  for (const pid of [root, ...descendantsOf(root)]) {
    const facts = readProcess(pid);
    if (facts !== undefined && !names.has(facts.ownPid)) names.set(facts.ownPid, facts.name);
  }
  return names;
}

export function childrenOf(pid: number): readonly number[] {
  return readFolder(`/proc/${pid}/task`).flatMap((thread) => {
    const children = readProc(`/proc/${pid}/task/${thread}/children`) ?? '';
    return children.split(' ').filter(Boolean).map(Number);
  });
}

/** Children, their children and so on; a process is in it once, whatever changes meanwhile. */
export function descendantsOf(pid: number): readonly number[] {
  const found = new Set<number>();
  const left = [...childrenOf(pid)];
  for (let next = left.pop(); next !== undefined; next = left.pop()) {
    if (found.has(next) || next === pid) continue;
    found.add(next);
    left.push(...childrenOf(next));
  }
  return [...found];
}

function readFolder(path: string): readonly string[] {
  try {
    return readdirSync(path);
  } catch {
    return [];
  }
}

/** Whose unit's main process this seems to be: a child of the service manager in a .service cgroup. */
export function serviceOf(facts: ProcessFacts): string | undefined {
  if (facts.parent !== 1 && readProcess(facts.parent)?.name !== 'systemd') return undefined;
  for (const line of facts.cgroups) {
    const unit = /\/([^/]+\.service)(?:\/[^/]*)?$/.exec(line)?.[1];
    if (unit !== undefined) return unit;
  }
  return undefined;
}
