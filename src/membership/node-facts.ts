/** What a node tells the others of itself. */
import { readFileSync } from 'node:fs';
import { release } from 'node:os';
import type { NodeFacts } from '../format/peer-messages.js';

/** Of all memory, that replicas leave to everything else on the machine. */
const reserveShare = 0.1;

export function nodeFacts(version: string, groups: number, meminfo = readMeminfo()): NodeFacts {
  const memoryBytes = kibibytes(meminfo, 'MemTotal') * 1024;
  const availableBytes = kibibytes(meminfo, 'MemAvailable') * 1024;
  const left = availableBytes - Math.round(memoryBytes * reserveShare);
  const memoryForReplicasBytes = Math.max(0, left);
  return { version, kernel: release(), memoryBytes, memoryForReplicasBytes, groups };
}

const readMeminfo = (): string => readFileSync('/proc/meminfo', 'utf8');

function kibibytes(meminfo: string, field: string): number {
  return Number(new RegExp(`^${field}:\\s+(\\d+) kB$`, 'm').exec(meminfo)?.[1] ?? 0);
}
