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

const valueBytes = 100;
/** What a key with such a value takes, found by INFO memory. */
const perKeyBytes = 190;

/** What of the sizes the data set depends on. */
type DataSet = Pick<Sizes, 'mib'>;

export const keysOf = (sizes: DataSet): number => Math.ceil((sizes.mib * 2 ** 20) / perKeyBytes);

/** As redis-benchmark names them, so that none of its writes makes the data set grow. */
const fillKeys = `
  for i = 0, ARGV[1] - 1 do
    redis.call('SET', string.format('key:%012d', i), string.rep('x', ARGV[2]))
  end
  return 'OK'`;

async function ask(stage: Stage, server: Server, words: readonly string[]): Promise<string> {
  const { stdout } = await stage.run('redis-cli', ['-p', String(server.port), ...words]);
  return stdout;
}

/** redis with `mib` of keys in it, all that the load may write. */
export async function startFilledRedis(stage: Stage, sizes: DataSet): Promise<Server> {
  const server = await startRedis(stage);
  const answer = await ask(stage, server, [
    ...['EVAL', fillKeys, '0'],
    ...[String(keysOf(sizes)), String(valueBytes)],
  ]);
  if (!answer.startsWith('OK')) throw new Error(`redis cannot be filled: ${answer}`);
  return server;
}

/** Goes on until it is killed; its exit code stays null as long as no client has an error. */
export function startLoad(stage: Stage, server: Server, load: Load, sizes: Sizes): ChildProcess {
  const keys = loads[load].flatMap((flag) => [flag, String(keysOf(sizes))]);
  const port = ['-p', String(server.port)];
  const work = ['-t', 'set', '-d', String(valueBytes), '-n', '2000000000', '-q'];
  return stage.spawn('redis-benchmark', [...port, ...work, ...keys]);
}

/** How many commands the server has answered since it was started. */
export async function commandsOf(stage: Stage, server: Server): Promise<number> {
  const info = await ask(stage, server, ['INFO', 'stats']);
  const commands = Number(/total_commands_processed:(\d+)/.exec(info)?.[1]);
  if (!(commands > 0)) throw new Error(`redis does not count its commands: ${info}`);
  return commands;
}

export async function endChild(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, 'exit');
  child.kill('SIGKILL');
  await ended;
}
