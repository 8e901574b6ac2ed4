/** A filled redis-server and the two fixed loads of redis-benchmark. */
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { startRedis, type Server } from '../../test/support/servers.js';
import type { Stage } from '../../test/support/stage.js';
import type { Sizes } from './sizes.js';

export const loads = {
  'one hot key': [] as readonly string[],
  'whole key space': ['-r'] as readonly string[],
} as const;
export type Load = keyof typeof loads;

const valueBytes = 1000;
const perKeyBytes = 1100;

/** redis with `mib` of values in it; the benchmark's own keys come on top. */
export async function startFilledRedis(stage: Stage, mib: number): Promise<Server> {
  const server = await startRedis(stage);
  const keys = Math.ceil((mib * 2 ** 20) / perKeyBytes);
  const words = ['DEBUG', 'POPULATE', String(keys), 'filled', String(valueBytes)];
  const { stdout } = await stage.run('redis-cli', ['-p', String(server.port), ...words]);
  if (!stdout.startsWith('OK')) throw new Error(`redis cannot be filled: ${stdout}`);
  return server;
}

function benchmarkArguments(server: Server, load: Load, sizes: Sizes): string[] {
  const keys = loads[load].flatMap((flag) => [flag, String(sizes.keySpace)]);
  return ['-p', String(server.port), '-t', 'set', '-d', '100', ...keys];
}

/** Goes on until it is killed; its exit code stays null as long as no client has an error. */
export function startLoad(stage: Stage, server: Server, load: Load, sizes: Sizes): ChildProcess {
  const args = benchmarkArguments(server, load, sizes);
  return stage.spawn('redis-benchmark', [...args, '-n', '2000000000', '-q']);
}

/** Requests a second of a run that takes about `seconds`, given a first guess of the rate. */
export async function measureLoad(
  stage: Stage,
  server: Server,
  load: Load,
  sizes: Sizes,
  guess: number,
): Promise<number> {
  const requests = Math.max(10_000, Math.round(guess * sizes.seconds));
  const args = benchmarkArguments(server, load, sizes);
  const start = performance.now();
  const { stdout, status } = await stage.run('redis-benchmark', [
    ...args,
    ...['-n', String(requests), '--csv'],
  ]);
  const rate = Number(/"SET","([\d.]+)"/.exec(stdout)?.[1]);
  if (status !== 0 || !(rate > 0)) {
    throw new Error(`redis-benchmark ended after ${performance.now() - start} ms: ${stdout}`);
  }
  return rate;
}

export async function endChild(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, 'exit');
  child.kill('SIGKILL');
  await ended;
}
