/** One node: what it can be asked to do, and what can be done to it. */
import { readFileSync } from 'node:fs';
import { setTimeout as pause } from 'node:timers/promises';
import { Agent, type Listener, type Outcome } from './agent.js';
import { BedError, lastLines } from './bed-error.js';
import { end, lives, signal, type ProcessId } from './processes.js';
import type { NodeFiles } from './qemu.js';
import { Qmp } from './qmp.js';
import { patiently } from './patience.js';

/** `stopped`: the node's clocks stand still with it; `running`: they go on, as in a real stall. */
export type Clocks = 'stopped' | 'running';
/** Which packages are lost: those it sends, those it should receive, or both. */
export type Direction = 'out' | 'in' | 'both';

export interface RunOptions {
  /** In ms; two minutes if not given. */
  readonly limitMs?: number;
  readonly listener?: Listener;
}

const answerMs = patiently(60_000);
const shownLines = 15;
const filters = { out: 'lost-out', in: 'lost-in' } as const;

export class VmNode {
  readonly number: number;
  readonly name: string;
  readonly address: string;
  readonly files: NodeFiles;
  #process: ProcessId | undefined;
  #agent: Agent | undefined;

  constructor(number: number, files: NodeFiles, id: ProcessId | undefined) {
    this.number = number;
    this.name = `n${number}`;
    this.address = `10.77.0.${number}`;
    this.files = files;
    this.#process = id;
  }

  get process(): ProcessId | undefined {
    return this.#process;
  }

  started(id: ProcessId): void {
    this.#process = id;
  }

  get running(): boolean {
    return this.#process !== undefined && lives(this.#process);
  }

  /**
   * Runs a script in the node's shell, whatever status it ends with.
   * @throws BedError with the console's last lines when the node does not answer or takes too long
   */
  async run(script: string, options: RunOptions = {}): Promise<Outcome> {
    const agent = await this.#connected();
    try {
      return await agent.run(script, options.limitMs ?? patiently(120_000), options.listener);
    } catch (error) {
      throw this.#explained(error);
    }
  }

  /** Runs a script that must succeed; gives its trimmed standard output. */
  async sh(script: string, options: RunOptions = {}): Promise<string> {
    const { status, stdout, stderr } = await this.run(script, options);
    if (status === 0) return stdout.trim();
    const told = lastLines(`${stdout}${stderr}`, shownLines);
    throw new BedError(`${this.name}: status ${status} of: ${script.slice(0, 300)}\n${told}`);
  }

  /** Waits until the agent answers. @throws BedError with the console's last lines if it does not */
  async ready(limitMs = answerMs): Promise<void> {
    const last = Date.now() + limitMs;
    while (Date.now() < last) {
      if (!this.running) throw this.#explained('QEMU has ended');
      const left = last - Date.now();
      // QEMU may have ended meanwhile, or may hang: that is what there is to say then.
      this.#agent = await Agent.connect(this.files.agent, Math.min(2000, left)).catch(
        () => undefined,
      );
      if (this.#agent) return;
    }
    throw this.#explained(`it does not answer in ${Math.round(limitMs / 1000)} s`);
  }

  /** The node is gone at once, as if its plug had been pulled. */
  async crash(): Promise<void> {
    this.release();
    if (this.#process && !(await end(this.#process))) {
      throw new BedError(`${this.name}: process ${this.#process.pid} does not die`);
    }
    this.#process = undefined;
  }

  async hang(clocks: Clocks = 'stopped'): Promise<void> {
    if (clocks === 'stopped') await this.qmp((qmp) => qmp.execute('stop'));
    else if (!this.#process || !signal(this.#process, 'SIGSTOP'))
      throw this.#explained('it is gone');
  }

  /** Loses packets; the card still shows a carrier. */
  async partition(direction: Direction = 'both'): Promise<void> {
    const lost = direction === 'both' ? (['out', 'in'] as const) : [direction];
    await this.qmp(async (qmp) => {
      const there = await filtersOf(qmp);
      for (const way of lost) {
        const id = filters[way];
        if (there.includes(id)) continue;
        await forget(qmp, id);
        await qmp.execute('chardev-add', { id, backend: { type: 'null', data: {} } });
        // Packets are redirected to nowhere. QEMU's queues are seen from its own side of the card:
        // "rx" is what the guest sends.
        const queue = way === 'out' ? 'rx' : 'tx';
        const filter = { 'qom-type': 'filter-redirector', id, netdev: 'net0', queue, outdev: id };
        await qmp.execute('object-add', filter);
      }
    });
  }

  /** The cable is pulled: no packets, and no carrier. */
  async unplug(): Promise<void> {
    await this.qmp((qmp) => qmp.execute('set_link', { name: 'nic0', up: false }));
  }

  /** Undoes hangs and partitions. */
  async heal(): Promise<void> {
    if (!this.#process || !signal(this.#process, 'SIGCONT')) throw this.#explained('it is gone');
    await this.qmp(async (qmp) => {
      const { status } = await qmp.execute<{ status: string }>('query-status');
      if (status === 'paused') await qmp.execute('cont');
      await qmp.execute('set_link', { name: 'nic0', up: true });
      for (const id of await filtersOf(qmp)) await qmp.execute('object-del', { id });
      for (const id of Object.values(filters)) await forget(qmp, id);
    });
  }

  async qmp<T>(body: (qmp: Qmp) => Promise<T>): Promise<T> {
    if (!this.running) throw this.#explained('it does not run');
    let qmp: Qmp | undefined;
    try {
      qmp = await Qmp.connect(this.files.qmp);
      return await body(qmp);
    } catch (error) {
      throw this.#explained(error);
    } finally {
      qmp?.close();
    }
  }

  /** The last lines of its console and of QEMU's own output. */
  lastWords(): string {
    const read = (file: string): string => {
      try {
        return readFileSync(file, 'utf8').replaceAll('\r', '');
      } catch {
        return '';
      }
    };
    return lastLines(`${read(this.files.console)}${read(this.files.log)}`, shownLines);
  }

  /** Lets go of the node, which runs on. */
  release(): void {
    this.#agent?.close();
    this.#agent = undefined;
  }

  async #connected(): Promise<Agent> {
    if (!this.#agent?.connected) await this.ready();
    if (!this.#agent) throw this.#explained('it does not answer');
    return this.#agent;
  }

  #explained(problem: unknown): BedError {
    const what = problem instanceof Error ? problem.message : String(problem);
    const words = this.lastWords();
    return new BedError(`${this.name}: ${what}\nits console ends: ${words || '(it is empty)'}`);
  }
}

/** The place that a filter's packets went to, if it is there: who made it may have been killed. */
async function forget(qmp: Qmp, id: string): Promise<void> {
  await qmp.execute('chardev-remove', { id }).catch(() => undefined);
}

/** The filters of ours that lose packets now. */
async function filtersOf(qmp: Qmp): Promise<string[]> {
  const objects = await qmp.execute<{ name: string }[]>('qom-list', { path: '/objects' });
  return Object.values(filters).filter((id) => objects.some(({ name }) => name === id));
}

/** Until `condition` holds; asked about twice a second, since each time costs the node some work. */
export async function until(
  condition: () => Promise<boolean>,
  limitMs: number,
  message: string,
): Promise<void> {
  for (const last = Date.now() + limitMs; !(await condition()); await pause(500)) {
    if (Date.now() > last) throw new BedError(`after ${limitMs} ms: ${message}`);
  }
}
