/**
 * A place of its own for one test: a folder on tmpfs, a daemon with all its files below it, and
 * whatever the test starts. All of it is ended by pid; a failing test's folder stays.
 */
import { spawn, type ChildProcess, type SpawnOptions } from 'node:child_process';
import { once } from 'node:events';
import { createWriteStream, existsSync } from 'node:fs';
import { mkdir, mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { request, type IncomingMessage } from 'node:http';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { ApiClient } from '../../src/api/client.js';
import type { GroupStatus, KernelReport, StatusReport } from '../../src/api/schema.js';
import { toRequest } from '../../src/cli/protect-options.js';
import { endProcessesOf, isRunning, processesOf, sendSignal } from './processes.js';
import { cliPath } from './repository.js';
import { slow, slowness, slowPauses, waitFor } from './wait-for.js';

export interface CommandResult {
  readonly status: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface CommandError {
  readonly code: string;
  readonly message: string;
  readonly advice?: string;
  readonly refusals?: readonly { pid: number; object: string; kind: string; why: string }[];
}

const commandMs = 120_000 * slowness;
/** REPLPAGE_TEST_TRACKER=soft-dirty protects with that tracker wherever a test names none. */
const tracker = process.env['REPLPAGE_TEST_TRACKER'];

export class Stage {
  readonly folder: string;
  readonly runtimeDir: string;
  #daemon: ChildProcess | undefined;
  #started = 0;
  #keep = false;

  private constructor(folder: string) {
    this.folder = folder;
    this.runtimeDir = path.join(folder, 'run');
  }

  /** The folder is on tmpfs: status pages and sockets live there. */
  static async make(name: string): Promise<Stage> {
    const base = existsSync('/dev/shm') ? '/dev/shm' : '/tmp';
    const folder = await mkdtemp(path.join(base, `replpage-${name}-`));
    await mkdir(path.join(folder, 'run'), { mode: 0o755 });
    return new Stage(folder);
  }

  get environment(): NodeJS.ProcessEnv {
    return { ...process.env, REPLPAGE_RUNTIME_DIR: this.runtimeDir };
  }

  get daemonPid(): number {
    const pid = this.#daemon?.pid;
    if (pid === undefined) throw new Error('no daemon was started');
    return pid;
  }

  get #socket(): string {
    return path.join(this.runtimeDir, 'replpage.sock');
  }

  get #client(): ApiClient {
    return new ApiClient(this.#socket);
  }

  get daemonLog(): string {
    return path.join(this.folder, 'daemon.log');
  }

  /** A file or folder of the stage. */
  path(...names: string[]): string {
    return path.join(this.folder, ...names);
  }

  /** Starts a program of the stage; its output goes to a file that a failing test keeps. */
  spawn(command: string, args: readonly string[], options: SpawnOptions = {}): ChildProcess {
    this.#started++;
    const log = createWriteStream(this.path(`${this.#started}-${path.basename(command)}.log`));
    const child = spawn(command, args, {
      cwd: this.folder,
      env: this.environment,
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe'],
      ...options,
    });
    child.stdout?.pipe(log, { end: false });
    child.stderr?.pipe(log, { end: false });
    child.once('error', (error) => log.write(`${error.message}\n`));
    return child;
  }

  async startDaemon(...flags: string[]): Promise<void> {
    const log = createWriteStream(this.daemonLog, { flags: 'a' });
    const patient = slow && !flags.includes('--freeze-deadline');
    const own = patient ? [...flags, '--freeze-deadline', slowPauses.freezeDeadline] : flags;
    this.#daemon = spawn(process.execPath, [cliPath, 'daemon', ...own], {
      cwd: this.folder,
      env: this.environment,
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    this.#daemon.stdout?.pipe(log, { end: false });
    this.#daemon.stderr?.pipe(log, { end: false });
    const daemon = this.#daemon;
    await waitFor(
      async () => {
        if (daemon.exitCode !== null || daemon.signalCode !== null) {
          throw new Error(`the daemon ended: ${await this.#lastOfLog()}`);
        }
        return (await this.status()) !== undefined;
      },
      20_000,
      async () => `the daemon does not answer: ${await this.#lastOfLog()}`,
    );
  }

  async killDaemon(): Promise<void> {
    const daemon = this.#daemon;
    if (!daemon || daemon.exitCode !== null || daemon.signalCode !== null) return;
    const ended = once(daemon, 'exit');
    daemon.kill('SIGKILL');
    await ended;
  }

  async stopDaemon(): Promise<number | null> {
    const daemon = this.#daemon;
    if (!daemon || daemon.exitCode !== null || daemon.signalCode !== null) return null;
    const ended = once(daemon, 'exit');
    daemon.kill('SIGTERM');
    await waitFor(
      () => daemon.exitCode !== null || daemon.signalCode !== null,
      20_000,
      async () => `the daemon does not end after SIGTERM: ${await this.#lastOfLog()}`,
    );
    await ended;
    return daemon.exitCode;
  }

  daemonRuns(): boolean {
    const daemon = this.#daemon;
    return daemon !== undefined && daemon.exitCode === null && daemon.signalCode === null;
  }

  /** Runs `replpage ARGS`, as a user would. */
  command(...args: string[]): Promise<CommandResult> {
    return this.run(process.execPath, [cliPath, ...args]);
  }

  async run(
    command: string,
    args: readonly string[],
    options: SpawnOptions = {},
  ): Promise<CommandResult> {
    const child = spawn(command, args, {
      cwd: this.folder,
      env: this.environment,
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: commandMs,
      killSignal: 'SIGKILL',
      ...options,
    });
    let stdout = '';
    let stderr = '';
    child.stdout?.on('data', (chunk: Buffer) => (stdout += chunk.toString()));
    child.stderr?.on('data', (chunk: Buffer) => (stderr += chunk.toString()));
    const [status, signal] = (await once(child, 'close')) as [number | null, NodeJS.Signals | null];
    return { status, signal, stdout, stderr };
  }

  /** Runs a command with --json that must succeed, and gives its object. */
  async json<T>(...args: string[]): Promise<T> {
    const result = await this.command(...args, '--json');
    if (result.status !== 0) {
      const { status, signal, stdout, stderr } = result;
      const how = signal ?? String(status);
      throw new Error(`replpage ${args.join(' ')} ended with ${how}: ${stdout}${stderr}`);
    }
    return JSON.parse(result.stdout) as T;
  }

  /** Runs a command with --json that must fail, and gives its error. */
  async refusal(...args: string[]): Promise<CommandError> {
    const result = await this.command(...args, '--json');
    if (result.status === 0) throw new Error(`replpage ${args.join(' ')} did not fail`);
    try {
      return (JSON.parse(result.stdout) as { error: CommandError }).error;
    } catch {
      throw new Error(`not a JSON error: ${result.stdout}${result.stderr}`);
    }
  }

  /**
   * As `replpage protect` with the flags given. Where everything is slow the daemon is asked
   * directly, since a command alone takes ten seconds there, and pauses may last.
   */
  async protect(pid: number, name: string, ...flags: string[]): Promise<GroupStatus> {
    const own = [
      ...['--name', name],
      ...(tracker === undefined || flags.includes('--tracker') ? [] : ['--tracker', tracker]),
      ...flags,
    ];
    if (slow) return this.#protectDirectly(pid, own);
    const args = ['protect', String(pid), ...own];
    const { group } = await this.json<{ group: GroupStatus }>(...args);
    return group;
  }

  /** What the daemon found of the kernel. */
  kernel(): Promise<KernelReport> {
    return this.#client.kernel();
  }

  async #protectDirectly(pid: number, flags: readonly string[]): Promise<GroupStatus> {
    const longest = ['--max-pause', slowPauses.maxPause];
    const args = flags.includes('--max-pause') ? flags : [...flags, ...longest];
    const names = args.filter((each) => each.startsWith('--')).map((each) => each.slice(2));
    const options = Object.fromEntries(names.map((each) => [each, { type: 'string' as const }]));
    const camelCase = (text: string): string =>
      text.replaceAll(/-(.)/g, (_, letter: string) => letter.toUpperCase());
    const values = Object.entries(parseArgs({ args: [...args], options }).values);
    const given = Object.fromEntries(values.map(([key, value]) => [camelCase(key), value]));
    const request = toRequest(String(pid), given);
    const { group } = await this.#client.protect(request, { onProgress: () => undefined });
    return group;
  }

  /** Ends the protection, asked directly. Throws what the daemon answers when it refuses. */
  async unprotect(name: string): Promise<GroupStatus> {
    return this.#client.act(name, 'unprotect');
  }

  /**
   * What `replpage status` asks for, asked directly: it is called in a loop, and a command each time
   * would keep a core busy. Undefined where no daemon answers.
   */
  async status(): Promise<StatusReport | undefined> {
    const asked = request({ socketPath: this.#socket, path: '/v1/status' });
    const answered = once(asked, 'response') as Promise<[IncomingMessage]>;
    asked.end();
    try {
      const [response] = await answered;
      let body = '';
      for await (const chunk of response) body += String(chunk);
      return response.statusCode === 200 ? (JSON.parse(body) as StatusReport) : undefined;
    } catch {
      return undefined;
    }
  }

  /** As `replpage status NAME` shows it, with what its replica takes of RAM. */
  groupInFull(name: string): Promise<GroupStatus> {
    return this.#client.group(name);
  }

  /** Undefined where there is no such group, or no daemon. */
  async group(name: string): Promise<GroupStatus | undefined> {
    const report = await this.status();
    return report?.groups.find((each) => each.name === name) as GroupStatus | undefined;
  }

  async waitForState(
    name: string,
    states: readonly string[],
    limitMs = 30_000,
  ): Promise<GroupStatus> {
    let seen: GroupStatus | undefined;
    return waitFor(
      async () => {
        seen = await this.group(name);
        return seen !== undefined && states.includes(seen.state) && seen;
      },
      limitMs,
      async () =>
        `${name} is ${seen?.state ?? 'unknown'} (${seen?.reason ?? 'no reason'}), not ` +
        `${states.join(' or ')}; daemon: ${await this.#lastOfLog()}`,
    );
  }

  /** Waits until the group has been promoted beyond `generation` and is protected again. */
  async waitForPromotion(name: string, generation: number, limitMs = 60_000): Promise<GroupStatus> {
    let seen: GroupStatus | undefined;
    return waitFor(
      async () => {
        seen = await this.group(name);
        if (seen && ['ended', 'failed', 'unprotected'].includes(seen.state)) {
          throw new Error(`${name} is ${seen.state}: ${seen.reason ?? ''}`);
        }
        return (
          seen?.generation !== undefined &&
          seen.generation > generation &&
          ['protected', 'lagging'].includes(seen.state) &&
          seen
        );
      },
      limitMs,
      async () =>
        `${name} is ${seen?.state ?? 'unknown'} at generation ${seen?.generation ?? '?'} ` +
        `(${seen?.reason ?? 'no reason'}); daemon: ${await this.#lastOfLog()}`,
    );
  }

  /**
   * Asks the daemon for protection and waits for nothing: unlike the command it starts no daemon
   * where none answers, and the daemon may be killed before it has answered.
   */
  askProtect(pid: number, name: string): void {
    const body = JSON.stringify({ pid, name });
    const asked = request({
      socketPath: this.#socket,
      path: '/v1/groups',
      method: 'POST',
      headers: { 'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(body) },
    });
    asked.on('error', () => undefined);
    asked.on('response', (response) => {
      response.on('error', () => undefined);
      response.resume();
    });
    asked.end(body);
  }

  /** A failing test's folder is left for a look. */
  keep(): void {
    this.#keep = true;
  }

  /** Ends everything; gives what could not be ended or was left behind. */
  async end(): Promise<string[]> {
    const left: string[] = [];
    if (this.daemonRuns())
      await this.stopDaemon().catch((error: unknown) => left.push(String(error)));
    left.push(...(await endProcessesOf(this.folder)));
    left.push(...(await cgroupsOf(path.basename(this.folder))));
    if (!this.#keep && left.length === 0) await rm(this.folder, { recursive: true, force: true });
    return left;
  }

  /** Processes of the stage, beside the daemon. */
  async processes(): Promise<{ pid: number; what: string }[]> {
    return (await processesOf(this.folder)).filter(({ pid }) => pid !== this.#daemon?.pid);
  }

  async endPid(pid: number): Promise<void> {
    sendSignal(pid, 'SIGKILL');
    await waitFor(async () => !(await isRunning(pid)), 20_000, `process ${pid} does not die`);
  }

  async #lastOfLog(): Promise<string> {
    const text = await readFile(this.daemonLog, 'utf8').catch(() => '');
    return text.trim().split('\n').slice(-3).join(' | ').slice(-800);
  }
}

/** Control groups whose name has the text in it. */
async function cgroupsOf(text: string): Promise<string[]> {
  const found: string[] = [];
  for (const base of await readdir('/sys/fs/cgroup').catch(() => [])) {
    const folder = path.join('/sys/fs/cgroup', base, 'replpage');
    for (const name of await readdir(folder).catch(() => [])) {
      if (name.includes(text)) found.push(`cgroup ${path.join(folder, name)}`);
    }
  }
  return found;
}
