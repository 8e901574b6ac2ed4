/** Some nodes on one wire: made, taken up again by another tool, and ended without a trace. */
import { rmSync } from 'node:fs';
import { BedError, reasonOf } from './bed-error.js';
import { prepareProject, prepareSystem } from './images.js';
import { prepareInitramfs } from './initramfs.js';
import { prepareKernel } from './kernel.js';
import { goOn } from './interruption.js';
import { inNetwork, makeNetwork } from './network.js';
import { VmNode } from './node.js';
import { identify } from './processes.js';
import { commandLine, filesOf, makeDataDisk, startQemu, type Machine } from './qemu.js';
import { prepareSavedState, resume } from './saved-state.js';
import {
  claim,
  dismantle,
  folderOf,
  readState,
  sweep,
  writeState,
  type BedState,
} from './state.js';

export interface BedOptions {
  /** "6.1", "6.12", or the name of a Debian kernel package. */
  readonly kernel: string;
  readonly nodes: number;
  readonly name?: string;
  readonly memoryMiB?: number;
  readonly processors?: number;
  /** Boots every node instead of restoring a saved state. */
  readonly cold?: boolean;
  /** Whether it stays when this process ends. */
  readonly outlives?: boolean;
  /** Hears what is being done, for whoever waits. */
  readonly progress?: (what: string) => void;
}

const usualMemoryMiB = 1024;
const nodesMax = 9;
/** Of the node that is saved: no node of a bed has it. */
const templateNumber = 0;
let made = 0;

const isCount = (value: number): boolean => Number.isInteger(value) && value > 0;

export async function prepareMachine(
  options: BedOptions,
): Promise<{ readonly machine: Machine; readonly release: string }> {
  const progress = options.progress ?? (() => undefined);
  progress(`kernel ${options.kernel}`);
  const kernel = await prepareKernel(options.kernel);
  const initramfs = await prepareInitramfs(kernel);
  progress('system image');
  const system = await prepareSystem();
  progress('project image');
  const project = await prepareProject();
  const machine: Machine = {
    vmlinux: kernel.vmlinux,
    initramfs,
    system,
    modules: kernel.modules,
    project,
    memoryMiB: options.memoryMiB ?? usualMemoryMiB,
    processors: options.processors ?? 1,
    accelerator: process.env['REPLPAGE_VM_ACCEL'] === 'kvm' ? 'kvm' : 'tcg',
  };
  return { machine, release: kernel.release };
}

export class Bed {
  readonly nodes: readonly VmNode[];
  readonly #outlives: boolean;
  #state: BedState;

  private constructor(state: BedState, outlives: boolean) {
    this.#state = state;
    this.#outlives = outlives;
    this.nodes = state.nodes.map(
      ({ number, process }) => new VmNode(number, filesOf(folderOf(state.name), number), process),
    );
  }

  /**
   * Makes a bed; when that fails nothing of it is left.
   * @throws BedError
   */
  static async up(options: BedOptions): Promise<Bed> {
    const { nodes, memoryMiB = usualMemoryMiB, processors = 1 } = options;
    if (!isCount(nodes) || nodes > nodesMax) {
      throw new BedError(`a bed has 1 to ${nodesMax} nodes, not ${nodes}`);
    }
    if (!isCount(memoryMiB)) throw new BedError(`memory is a number of MiB, not ${memoryMiB}`);
    if (!isCount(processors)) throw new BedError(`processors are a number, not ${processors}`);
    await sweep();
    const { machine, release } = await prepareMachine(options);
    const owner = identify(process.pid);
    const state: BedState = {
      name: options.name ?? `test-${process.pid}-${++made}`,
      ...(owner && { owner }),
      kernel: release,
      machine,
      nodes: Array.from({ length: nodes }, (_, i) => ({ number: i + 1 })),
    };
    claim(state);
    const bed = new Bed(state, options.outlives ?? false);
    try {
      await makeNetwork(state.name);
      await bed.#startAll(options);
      if (bed.#outlives) bed.#disown();
      return bed;
    } catch (error) {
      const left = await bed.down().then(() => '', reasonOf);
      throw new BedError([reasonOf(error), left].filter(Boolean).join('\n'));
    }
  }

  /** @throws BedError when there is no such bed */
  static attach(name: string): Bed {
    const state = readState(name);
    if (!state) throw new BedError(`there is no bed ${name}: npm run vm -- up makes one`);
    return new Bed(state, true);
  }

  get name(): string {
    return this.#state.name;
  }

  /** As `uname -r` says on its nodes. */
  get kernel(): string {
    return this.#state.kernel;
  }

  get folder(): string {
    return folderOf(this.name);
  }

  /** @throws BedError when there is no node of this number */
  node(number: number): VmNode {
    const node = this.nodes.find((each) => each.number === number);
    if (!node) {
      const there = this.nodes.map((each) => each.number).join(', ');
      throw new BedError(`bed ${this.name} has no node ${number}; it has ${there}`);
    }
    return node;
  }

  /** Starts a node that has crashed, with the data disk it had. */
  async start(number: number, options: { readonly cold?: boolean } = {}): Promise<VmNode> {
    const node = this.node(number);
    if (node.running) throw new BedError(`${node.name} runs already`);
    try {
      await this.#start(node, options.cold === true ? undefined : await this.#savedState());
      return node;
    } catch (error) {
      await node.crash();
      throw error;
    }
  }

  /** Ends it all. @throws BedError with what could not be ended */
  async down(): Promise<void> {
    for (const node of this.nodes) node.release();
    const left = await dismantle(this.name);
    if (left.length > 0) throw new BedError(`left behind: ${left.join(', ')}`);
  }

  async #startAll(options: BedOptions): Promise<void> {
    const progress = options.progress ?? (() => undefined);
    progress(options.cold === true ? 'booting' : 'saved state');
    const saved = options.cold === true ? undefined : await this.#savedState();
    progress(`${this.nodes.length} nodes`);
    await Promise.all(this.nodes.map((node) => this.#start(node, saved)));
  }

  async #savedState(): Promise<string> {
    const [first] = this.nodes;
    if (!first) throw new BedError('a bed without nodes');
    const files = filesOf(this.folder, templateNumber);
    const template = new VmNode(templateNumber, files, undefined);
    const boot = async (): Promise<VmNode> => {
      await this.#launch(template, undefined);
      await template.ready();
      return template;
    };
    // Seen once, on a busy host: process 1 read garbage and the kernel gave up half-way.
    const bootAgain = async (error: unknown): Promise<VmNode> => {
      goOn();
      if (template.running) throw error;
      console.error(`# it is booted once more: ${reasonOf(error)}`);
      return boot();
    };
    const twice = (): Promise<VmNode> => boot().catch(bootAgain);
    return prepareSavedState(this.#state.machine, twice).finally(() =>
      rmSync(files.data, { force: true }),
    );
  }

  async #launch(node: VmNode, saved: string | undefined): Promise<void> {
    const { files } = node;
    for (const stale of [files.console, files.qmp, files.agent]) rmSync(stale, { force: true });
    makeDataDisk(files.data);
    const argv = commandLine(this.#state.machine, files, saved);
    const around = inNetwork(this.name);
    const outlives = this.#outlives && node.number !== templateNumber;
    node.started(await startQemu(argv, files, { around, outlives }));
    this.#record();
  }

  async #start(node: VmNode, saved: string | undefined): Promise<void> {
    await this.#launch(node, saved);
    if (saved !== undefined) await resume(node);
    await node.ready();
    await node.sh(`/vm/become.sh ${node.number} ${(Date.now() / 1000).toFixed(3)}`);
  }

  #record(): void {
    const nodes = this.nodes.map((node) => ({
      number: node.number,
      ...(node.process && { process: node.process }),
    }));
    this.#state = { ...this.#state, nodes };
    writeState(this.#state);
  }

  /** From now on it stays until someone takes it down. */
  #disown(): void {
    const { name, kernel, machine, nodes } = this.#state;
    this.#state = { name, kernel, machine, nodes };
    writeState(this.#state);
  }
}
