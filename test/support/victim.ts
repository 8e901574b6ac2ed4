/** Starting victims and reading their status pages. test/victims/victim.h has the same layout. */
import type { ChildProcess } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { toolsDir, victimsDir } from './repository.js';
import { endProcessesOf, processesOf } from './processes.js';
import type { Stage } from './stage.js';
import { waitFor } from './wait-for.js';

export interface VictimEntry {
  readonly name: string;
  readonly program: string;
  readonly arguments?: readonly string[];
  readonly covers?: string;
  /** A round takes long: fewer of them are waited for. */
  readonly slow?: boolean;
  /** It is killed with its process group too, which it leads. */
  readonly killGroup?: boolean;
  /** What the refusal must match; such a victim is not to be replicated. */
  readonly refused?: string;
  /** What a refusal must name. */
  readonly names?: 'fd' | 'address';
  /** It may be refused too, in these words. */
  readonly orRefused?: string;
  /** A refused one that may be replicated where that is supported. */
  readonly orSurvives?: boolean;
  /** Of the kernel's features (`replpage doctor`); skipped without it. */
  readonly needs?: 'kernelReader';
}

export interface VictimState {
  readonly rounds: number;
  readonly errors: number;
  readonly ready: boolean;
  readonly pid: number;
  readonly interrupted: number;
  readonly number: bigint;
  readonly counters: readonly number[];
  readonly text: string;
}

interface Builder {
  readonly buildVictims: (directory: string) => Promise<string>;
}

const skippedStatus = 77;
const countersAt = 64;
const textAt = 576;

export async function buildIn(directory: string): Promise<string> {
  const script = pathToFileURL(path.join(victimsDir, 'build.mjs')).href;
  const { buildVictims } = (await import(script)) as Builder;
  return buildVictims(directory);
}

export const buildVictims = (): Promise<string> => buildIn(victimsDir);
export const buildTools = (): Promise<string> => buildIn(toolsDir);

export async function readVictims(): Promise<VictimEntry[]> {
  const text = await readFile(path.join(victimsDir, 'victims.json'), 'utf8');
  return JSON.parse(text) as VictimEntry[];
}

export class Victim {
  readonly name: string;
  readonly child: ChildProcess;
  readonly #file: string;

  private constructor(name: string, child: ChildProcess, file: string) {
    this.name = name;
    this.child = child;
    this.#file = file;
  }

  /** Gives the victim once it is set up, or the reason why this machine cannot run it. */
  static async start(
    stage: Stage,
    program: string,
    args: readonly string[] = [],
  ): Promise<Victim | string> {
    const programs = await buildVictims();
    const file = stage.path(`${program}-${++started}.status`);
    const child = stage.spawn(path.join(programs, program), [file, ...args]);
    const victim = new Victim(program, child, file);
    const state = await waitFor(
      async () => {
        const now = await victim.read();
        return (now?.ready === true || child.exitCode !== null) && (now ?? emptyState);
      },
      30_000,
      `${program} does not get ready`,
    );
    if (child.exitCode === skippedStatus) return state.text;
    if (child.exitCode !== null) throw new Error(`${program} ended: ${state.text}`);
    return victim;
  }

  get pid(): number {
    return this.child.pid ?? 0;
  }

  /** Ends it wherever it runs by now, with its children: all have the status file's name. */
  end(): Promise<string[]> {
    return endProcessesOf(this.#file);
  }

  /** Its processes, whatever pid they have by now. */
  processes(): Promise<{ pid: number; what: string }[]> {
    return processesOf(this.#file);
  }

  async read(): Promise<VictimState | undefined> {
    const page = await readFile(this.#file).catch(() => undefined);
    if (!page || page.length < 4096) return undefined;
    const at = (offset: number): number => Number(page.readBigUInt64LE(offset));
    const text = page.subarray(textAt, textAt + 2048);
    return {
      rounds: at(0),
      errors: at(8),
      ready: at(16) !== 0,
      pid: at(24),
      interrupted: at(32),
      number: page.readBigUInt64LE(40),
      counters: Array.from({ length: 64 }, (_, i) => at(countersAt + 8 * i)),
      text: text.subarray(0, text.indexOf(0)).toString(),
    };
  }

  async state(): Promise<VictimState> {
    const state = await this.read();
    if (!state) throw new Error(`${this.name} has no status page`);
    return state;
  }

  /** Waits until `count` more rounds are done without an error. */
  async waitForRounds(count: number, limitMs = 30_000): Promise<VictimState> {
    const { rounds } = await this.state();
    return this.waitUntil(
      (now) => now.rounds >= rounds + count,
      limitMs,
      (now) => `${now.rounds - rounds} rounds instead of ${count}: ${now.text}`,
    );
  }

  /** Fails at once when the victim finds an error. */
  async waitUntil(
    condition: (state: VictimState) => boolean,
    limitMs: number,
    otherwise: (state: VictimState) => string,
  ): Promise<VictimState> {
    let last = emptyState;
    return waitFor(
      async () => {
        last = await this.state();
        if (last.errors > 0) throw new Error(`${this.name} found an error: ${last.text}`);
        return condition(last) && last;
      },
      limitMs,
      () => `${this.name}: ${otherwise(last)}`,
    );
  }
}

let started = 0;

const emptyState: VictimState = {
  rounds: 0,
  errors: 0,
  ready: false,
  pid: 0,
  interrupted: 0,
  number: 0n,
  counters: [],
  text: 'it wrote no status page',
};
