/** A place of its own for the demo: a temporary folder, a redis-server, a daemon; all undone. */
import { spawn, type ChildProcess } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ApiClient } from '../../api/client.js';
import { systemClock } from '../../base/clock.js';
import { ReplicationError } from '../../base/errors.js';
import { socketPathOf } from '../../base/paths.js';
import { RedisConnection } from './resp.js';

const startMs = 20_000;
/** Keys are this large: 1 GiB takes about a million of them. */
const valueBytes = 1000;

export interface Fill {
  readonly keys: number;
  readonly bytes: number;
}

export class Stage {
  readonly folder: string;
  readonly runtimeDir: string;
  readonly port: number;
  readonly client: ApiClient;
  #redis: ChildProcess | undefined;
  #redisError: string | undefined;

  private constructor(folder: string, port: number) {
    this.folder = folder;
    this.port = port;
    this.runtimeDir = join(folder, 'run');
    this.client = new ApiClient(socketPathOf(this.runtimeDir));
  }

  static async make(): Promise<Stage> {
    return new Stage(await mkdtemp(join(tmpdir(), 'replpage-demo-')), await freePort());
  }

  /** An ordinary redis-server that knows nothing of replpage. Gives its pid. */
  async startRedis(): Promise<number> {
    const settings = {
      port: String(this.port),
      bind: '127.0.0.1',
      save: '',
      appendonly: 'no',
      dir: this.folder,
      logfile: join(this.folder, 'redis.log'),
      'enable-debug-command': 'local',
    };
    const args = Object.entries(settings).flatMap(([key, value]) => [`--${key}`, value]);
    this.#redis = spawn('redis-server', args, { stdio: 'ignore', detached: true });
    this.#redis.once('error', (error) => (this.#redisError = error.message));
    const deadline = systemClock.nowMs() + startMs;
    while (systemClock.nowMs() < deadline && this.#redisError === undefined) {
      try {
        const connection = await RedisConnection.connect(this.port);
        connection.close();
        return this.#redis.pid ?? 0;
      } catch {
        await systemClock.sleep(50);
      }
    }
    const log = await readFile(settings.logfile, 'utf8').catch(() => '');
    const why = this.#redisError ?? log.trim().split('\n').at(-1) ?? 'it does not answer';
    throw new ReplicationError('ERR_USAGE', `cannot start redis-server: ${why}`, {
      advice: 'apt-get install redis-server, or npm run setup',
    });
  }

  /** Fills redis until its own count says `bytes`, or `signal` ends it; its values say which key they belong to. */
  async fill(connection: RedisConnection, bytes: number, signal: AbortSignal): Promise<Fill> {
    const batch = 100_000;
    let keys = 0;
    for (;;) {
      const used = await usedMemory(connection);
      if (used >= bytes || signal.aborted) return { keys, bytes: used };
      const perKey = keys === 0 ? valueBytes + 100 : used / keys;
      keys += Math.max(1, Math.min(batch, Math.ceil((bytes - used) / perKey)));
      // Creates what is not there yet only.
      await connection.send('DEBUG', 'POPULATE', String(keys), 'demo', String(valueBytes));
    }
  }

  /** Every key is there; of `samples` of them the content is too. */
  async verifyFill(connection: RedisConnection, fill: Fill, samples: number): Promise<string[]> {
    const problems: string[] = [];
    const step = Math.max(1, Math.floor(fill.keys / samples));
    const checks: Promise<void>[] = [];
    for (let i = 0; i < fill.keys; i += step) {
      const check = connection.send('GET', `demo:${i}`).then((value) => {
        const whole = typeof value === 'string' && value.length === valueBytes;
        if (!whole || !value.startsWith(`value:${i}\0`))
          problems.push(`demo:${i} is not as filled`);
      });
      checks.push(check);
    }
    await Promise.all(checks);
    return problems;
  }

  /** Ends what was begun; `hostPids` are those that redis had after its first death. */
  async [Symbol.asyncDispose](): Promise<void> {
    const status = await this.client.status().catch(() => undefined);
    for (const group of status?.groups ?? []) {
      const shown = await this.client.act(group.name, 'unprotect').catch(() => undefined);
      if (shown !== undefined) endProcess(shown.hostPid, 'SIGKILL');
    }
    if (this.#redis?.exitCode === null && this.#redis.signalCode === null) {
      this.#redis.kill('SIGKILL');
    }
    if (status !== undefined) await endDaemon(status.daemon.pid);
    await rm(this.folder, { recursive: true, force: true });
  }
}

async function endDaemon(pid: number): Promise<void> {
  endProcess(pid, 'SIGTERM');
  const deadline = systemClock.nowMs() + startMs;
  while (systemClock.nowMs() < deadline && endProcess(pid, 0)) await systemClock.sleep(20);
}

/** False when there is no such process. */
function endProcess(pid: number, signal: NodeJS.Signals | 0): boolean {
  try {
    return process.kill(pid, signal);
  } catch {
    return false;
  }
}

async function usedMemory(connection: RedisConnection): Promise<number> {
  const info = await connection.send('INFO', 'memory');
  return Number(/used_memory:(\d+)/.exec(String(info))?.[1] ?? 0);
}

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once('error', reject);
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address() as AddressInfo;
      server.close(() => resolve(port));
    });
  });
}
