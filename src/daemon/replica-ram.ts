/**
 * What a replica really takes of RAM, everything counted. The kernel walks page tables for it
 * (about 15 ms/GiB), so it is measured when somebody asks about the group, and not too often.
 */
import { readFile } from 'node:fs/promises';
import type { RamStatus } from '../api/schema.js';
import type { GroupSnapshot } from '../capture/group-snapshot.js';
import { childrenOf, descendantsOf } from './process-facts.js';

/** Of the time between two looks, at most one part in so many is spent looking. */
const shareOfTime = 20;
const betweenMsMin = 500;
const kibibyte = 1024;

interface Processes {
  readonly holderPid: number;
  readonly replicaBytes: number;
  readonly keeperBytes: number;
  readonly pagerBytes: number;
}

export class ReplicaRam {
  #processes: Processes | undefined;
  #nextMs = 0;
  #looking: Promise<void> | undefined;

  /** Resolves when last() is of now, or of so short a time ago that another look costs too much. */
  async look(snapshot: GroupSnapshot): Promise<void> {
    const holderPid = snapshot.parts?.holderPid ?? 0;
    if (holderPid === 0) return;
    const known = this.#processes?.holderPid === holderPid;
    if (known && performance.now() < this.#nextMs) return;
    this.#looking ??= this.#measure(holderPid, snapshot.paging?.pagerPid ?? 0).finally(() => {
      this.#looking = undefined;
    });
    await this.#looking;
  }

  /** undefined: nobody has looked at this replica. */
  last({ parts, paging }: GroupSnapshot): RamStatus | undefined {
    const found = this.#processes;
    if (parts === undefined || found === undefined || found.holderPid !== parts.holderPid) {
      return undefined;
    }
    const { replicaBytes, keeperBytes, pagerBytes } = found;
    const { stagingBytes } = parts;
    const indexBytes = paging?.tableBytes ?? 0;
    const totalBytes = replicaBytes + keeperBytes + pagerBytes + stagingBytes + indexBytes;
    return { replicaBytes, keeperBytes, pagerBytes, stagingBytes, indexBytes, totalBytes };
  }

  async #measure(holderPid: number, pagerPid: number): Promise<void> {
    const startMs = performance.now();
    const keepers = childrenOf(holderPid);
    const replicas = keepers.flatMap(descendantsOf);
    const sum = async (pids: readonly number[], kind: Kind): Promise<number> => {
      const sizes = await Promise.all(pids.map((pid) => proportionalBytes(pid, kind)));
      return sizes.reduce((total, bytes) => total + bytes, 0);
    };
    this.#processes = {
      holderPid,
      replicaBytes: await sum(replicas, 'all'),
      keeperBytes: await sum([holderPid, ...keepers], 'own'),
      pagerBytes: pagerPid === 0 ? 0 : await sum([pagerPid], 'own'),
    };
    const endMs = performance.now();
    this.#nextMs = endMs + Math.max(betweenMsMin, (endMs - startMs) * shareOfTime);
  }
}

/** `own`: without shared memory, which is the staging memory in processes of ours. */
type Kind = 'all' | 'own';

/** 0: no such process, or none that may be looked at. */
async function proportionalBytes(pid: number, kind: Kind): Promise<number> {
  const rollup = await readOr(`/proc/${pid}/smaps_rollup`);
  const field = (name: string): number =>
    Number(new RegExp(`^${name}: *(\\d+) kB$`, 'm').exec(rollup)?.[1] ?? 0) * kibibyte;
  return kind === 'all' ? field('Pss') : field('Pss') - field('Pss_Shmem');
}

async function readOr(path: string): Promise<string> {
  return readFile(path, 'latin1').catch(() => '');
}
