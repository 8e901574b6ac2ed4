/** What a replica finds on its machine: kernel, vdso and processor must be as on the primary's. */
import { createHash } from 'node:crypto';
import { closeSync, openSync, readFileSync, readSync } from 'node:fs';
import { release, version } from 'node:os';
import type { MachineFacts } from '../format/peer-messages.js';

export function machineFacts(): MachineFacts {
  return { kernel: `${release()} ${version()}`, vdso: vdsoHash(), cpuFlags: cpuFlags() };
}

/** Why a replica of a process of `theirs` cannot run on `ours`; undefined when it can. */
export function whyNotAlike(theirs: MachineFacts, ours: MachineFacts): string | undefined {
  if (theirs.kernel !== ours.kernel) {
    return `another kernel runs here (${ours.kernel}) than there (${theirs.kernel})`;
  }
  if (theirs.vdso !== ours.vdso) return 'the kernel maps another vdso into processes here';
  const have = new Set(ours.cpuFlags.split(' '));
  const missing = theirs.cpuFlags.split(' ').filter((flag) => !have.has(flag));
  if (missing.length === 0) return undefined;
  return `the processor here lacks ${missing.slice(0, 8).join(', ')}`;
}

function cpuFlags(): string {
  return /^flags\s*: (.*)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1] ?? '';
}

/** All processes of a kernel have the same. */
function vdsoHash(): string {
  const maps = readFileSync('/proc/self/maps', 'utf8');
  const [, start = '0', end = '0'] = /^([0-9a-f]+)-([0-9a-f]+) .*\[vdso\]$/m.exec(maps) ?? [];
  const from = BigInt(`0x${start}`);
  const bytes = Buffer.alloc(Number(BigInt(`0x${end}`) - from));
  const memory = openSync('/proc/self/mem', 'r');
  try {
    readSync(memory, bytes, 0, bytes.length, from);
  } finally {
    closeSync(memory);
  }
  return createHash('sha256').update(bytes).digest('base64');
}
