/**
 * Nodes on one machine: a network namespace each, joined by veth pairs and a bridge that has one of
 * its own. All of it belongs to one test, is named by its pid, and goes with it.
 */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
} from 'node:fs';
import path from 'node:path';
import type { NodesReport, NodeStatus } from '../../src/api/cluster-schema.js';
import type { GroupStatus } from '../../src/api/schema.js';
import { ApiClient } from '../../src/api/client.js';
import { cliPath } from '../support/repository.js';
import { waitFor } from '../support/wait-for.js';

/** Why there can be no namespaces here; undefined when there can. */
export function whyNoNamespaces(): string | undefined {
  if (process.getuid?.() !== 0) return 'network namespaces need root';
  if (!existsSync(cliPath)) return 'dist/ is not built';
  const bridge = 'ip link add name br0 type bridge && ip link add v0 type veth peer name v1';
  const tried = spawnSync('unshare', ['--net', 'sh', '-c', bridge], { encoding: 'utf8' });
  if (tried.status === 0) return undefined;
  return `no bridge and veth in a network namespace here: ${tried.stderr?.trim() ?? 'no unshare'}`;
}

function ip(...args: string[]): void {
  const done = spawnSync('ip', args, { encoding: 'utf8' });
  if (done.status !== 0) throw new Error(`ip ${args.join(' ')}: ${done.stderr}`);
}

export interface Ran {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

export class NodeInNamespace {
  readonly name: string;
  readonly host: string;
  readonly runtimeDir: string;
  readonly #space: string;
  readonly #link: string;
  #daemon: ChildProcess | undefined;

  constructor(network: NamespaceNetwork, name: string, index: number) {
    this.name = name;
    this.host = `10.77.0.${index}`;
    this.#space = `${network.prefix}-${name}`;
    this.#link = `v${index}`;
    this.runtimeDir = path.join(network.folder, name);
    mkdirSync(this.runtimeDir, { mode: 0o755 });
    ip('netns', 'add', this.#space);
    const { hub } = network;
    ip('-n', hub, 'link', 'add', this.#link, 'type', 'veth', 'peer', 'eth0', 'netns', this.#space);
    ip('-n', hub, 'link', 'set', this.#link, 'master', 'br0', 'up');
    for (const device of ['lo', 'eth0']) ip('-n', this.#space, 'link', 'set', device, 'up');
    ip('-n', this.#space, 'addr', 'add', `${this.host}/24`, 'dev', 'eth0');
    this.#hub = hub;
  }

  readonly #hub: string;

  /** The cable: what was on its way is lost, and nobody is told. */
  plug(state: 'up' | 'down'): void {
    ip('-n', this.#hub, 'link', 'set', this.#link, state);
  }

  /** `covers`: folders that this node alone sees in the place of others, as if on its own disk. */
  async startDaemon(covers: Readonly<Record<string, string>> = {}): Promise<void> {
    const log = openSync(path.join(this.runtimeDir, 'test.log'), 'a');
    const mounts = Object.entries(covers).map(([at, own]) => `mount --bind '${own}' '${at}'`);
    const alone =
      mounts.length === 0
        ? []
        : ['unshare', '--mount', 'sh', '-c', [...mounts, 'exec "$@"'].join(' && '), 'sh'];
    const [space, ...command] = this.#inside([cliPath, 'daemon', '--runtime-dir', this.runtimeDir]);
    const args = [space ?? '', ...alone, ...command];
    this.#daemon = spawn('nsenter', args, { stdio: ['ignore', log, log] });
    closeSync(log);
    const client = new ApiClient(path.join(this.runtimeDir, 'replpage.sock'));
    const answers = () => client.status().then(Boolean, () => false);
    await waitFor(answers, 60_000, () => `the daemon does not answer: ${this.log}`);
  }

  async endDaemon(signal: 'SIGTERM' | 'SIGKILL'): Promise<void> {
    const daemon = this.#daemon;
    if (daemon === undefined || daemon.exitCode !== null || daemon.signalCode !== null) return;
    const ended = once(daemon, 'exit');
    daemon.kill(signal);
    await ended;
  }

  get log(): string {
    return readFileSync(path.join(this.runtimeDir, 'test.log'), 'utf8').slice(-2000);
  }

  /** `replpage ARGS`, typed on this node. */
  async type(...args: string[]): Promise<Ran> {
    const env = { ...process.env, REPLPAGE_RUNTIME_DIR: this.runtimeDir };
    const child = spawn('nsenter', this.#inside([cliPath, ...args]), { env });
    let [stdout, stderr] = ['', ''];
    child.stdout.on('data', (chunk: Buffer) => (stdout += chunk.toString()));
    child.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString()));
    const [status] = (await once(child, 'close')) as [number | null];
    return { status, stdout, stderr };
  }

  /** A program that runs on this node; its output can be read. */
  spawn(command: string, ...args: string[]): ChildProcess {
    const inside = [`--net=/run/netns/${this.#space}`, command, ...args];
    return spawn('nsenter', inside, { stdio: ['pipe', 'pipe', 'inherit'] });
  }

  /** What `ip ARGS` prints on this node. */
  ip(...args: string[]): string {
    const done = spawnSync('ip', ['-n', this.#space, ...args], { encoding: 'utf8' });
    if (done.status !== 0) throw new Error(`ip ${args.join(' ')}: ${done.stderr}`);
    return done.stdout;
  }

  /** As `replpage status NAME` has it, asked directly. */
  group(name: string): Promise<GroupStatus> {
    return new ApiClient(path.join(this.runtimeDir, 'replpage.sock')).group(name);
  }

  /** A program of this node. Its output is nobody's. */
  start(command: string, ...args: string[]): ChildProcess {
    const inside = [`--net=/run/netns/${this.#space}`, command, ...args];
    return spawn('nsenter', inside, { stdio: 'ignore', cwd: this.runtimeDir });
  }

  /** What a program of this node prints, when it is over. */
  ask(command: string, ...args: string[]): string {
    const inside = [`--net=/run/netns/${this.#space}`, command, ...args];
    return spawnSync('nsenter', inside, { encoding: 'utf8', timeout: 10_000 }).stdout.trim();
  }

  get client(): ApiClient {
    return new ApiClient(path.join(this.runtimeDir, 'replpage.sock'));
  }

  /** Asked directly: a command takes a second. */
  nodes(): Promise<NodesReport> {
    return new ApiClient(path.join(this.runtimeDir, 'replpage.sock')).nodes();
  }

  sees(name: string, state: NodeStatus['state'], limitMs = 60_000): Promise<NodeStatus> {
    let seen: NodesReport | undefined;
    return waitFor(
      async () => {
        seen = await this.nodes().catch(() => undefined);
        return seen?.nodes.find((node) => node.name === name && node.state === state);
      },
      limitMs,
      () => `${this.name} does not see ${name} ${state}: ${JSON.stringify(seen)}; ${this.log}`,
    );
  }

  /** Without a mount namespace, which `ip netns exec` would make. */
  #inside(args: readonly string[]): readonly string[] {
    return [`--net=/run/netns/${this.#space}`, process.execPath, ...args];
  }
}

export class NamespaceNetwork {
  readonly prefix = `rp${process.pid}`;
  readonly hub = `${this.prefix}-hub`;
  readonly folder = mkdtempSync('/dev/shm/replpage-cluster-');
  readonly nodes: NodeInNamespace[] = [];

  constructor() {
    ip('netns', 'add', this.hub);
    ip('-n', this.hub, 'link', 'add', 'name', 'br0', 'type', 'bridge');
    ip('-n', this.hub, 'link', 'set', 'br0', 'up');
  }

  node(name: string): NodeInNamespace {
    const made = new NodeInNamespace(this, name, this.nodes.length + 1);
    this.nodes.push(made);
    return made;
  }

  async end(): Promise<void> {
    for (const node of this.nodes) await node.endDaemon('SIGTERM');
    // With a namespace go the devices in it.
    for (const { name } of this.nodes) ip('netns', 'del', `${this.prefix}-${name}`);
    ip('netns', 'del', this.hub);
    rmSync(this.folder, { recursive: true, force: true });
  }
}
