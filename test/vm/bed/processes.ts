/**
 * Processes by their pid and start time, so that a pid that was given away again is never taken for
 * the one that was meant.
 */
import { readFileSync } from 'node:fs';
import { setTimeout as pause } from 'node:timers/promises';
import { patiently } from './patience.js';

export interface ProcessId {
  readonly pid: number;
  /** Field 22 of /proc/PID/stat, in clock ticks since the machine came up. */
  readonly startTime: string;
}

/** Undefined when there is no such process, or it is dead and only waits for its parent. */
export function identify(pid: number): ProcessId | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    const startTime = fields[19];
    return startTime === undefined || fields[0] === 'Z' ? undefined : { pid, startTime };
  } catch {
    return undefined;
  }
}

export function lives(id: ProcessId): boolean {
  return identify(id.pid)?.startTime === id.startTime;
}

/** False when it is gone already. */
export function signal(id: ProcessId, name: NodeJS.Signals): boolean {
  if (!lives(id)) return false;
  try {
    return process.kill(id.pid, name);
  } catch {
    return false;
  }
}

/** Kills it and waits until it is gone; false when it is still there after `limitMs`. */
export async function end(id: ProcessId, limitMs = patiently(10_000)): Promise<boolean> {
  for (const last = Date.now() + limitMs; Date.now() < last; await pause(10)) {
    if (!signal(id, 'SIGKILL')) return true;
  }
  return !lives(id);
}
