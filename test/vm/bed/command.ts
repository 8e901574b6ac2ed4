/** Running programs of this machine to their end. */
import { spawn, type SpawnOptions } from 'node:child_process';
import { once } from 'node:events';
import { BedError, lastLines, reasonOf } from './bed-error.js';
import { goOn, killedWhenInterrupted } from './interruption.js';

export interface CommandOptions {
  readonly cwd?: string;
  readonly env?: NodeJS.ProcessEnv;
  /** A descriptor that standard output goes to; nothing is returned then. */
  readonly stdout?: number;
  readonly input?: Buffer;
  /** Killed after this time, in ms. */
  readonly limitMs?: number;
  /** Whether it belongs to the cleaning up: it runs after an interruption too. */
  readonly cleansUp?: boolean;
  /** Exit statuses beside 0 that are no failure. */
  readonly allowed?: readonly number[];
}

const shownLines = 12;

/**
 * Runs a program and gives what it wrote on standard output.
 * @throws BedError with the end of its standard error when it fails, and what to do when it is missing
 */
export async function command(
  program: string,
  args: readonly string[],
  options: CommandOptions = {},
): Promise<string> {
  const { cwd, env, limitMs, input } = options;
  const settings: SpawnOptions = {
    stdio: [input ? 'pipe' : 'ignore', options.stdout ?? 'pipe', 'pipe'],
    // A group of its own, so that all it has started can be ended with it.
    detached: true,
    ...(cwd !== undefined && { cwd }),
    ...(env !== undefined && { env }),
    ...(limitMs !== undefined && { timeout: limitMs, killSignal: 'SIGKILL' }),
  };
  if (options.cleansUp !== true) goOn();
  const child = spawn(program, args, settings);
  const forget = options.cleansUp === true ? undefined : killedWhenInterrupted(child.pid);
  const out: Buffer[] = [];
  const err: Buffer[] = [];
  child.stdout?.on('data', (chunk: Buffer) => out.push(chunk));
  child.stderr?.on('data', (chunk: Buffer) => err.push(chunk));
  // A decompressor may have seen enough before it has read all: that is its own affair.
  child.stdin?.on('error', () => undefined);
  child.stdin?.end(input);
  const line = `${program} ${args.join(' ')}`.slice(0, 300);
  let ended: [number | null, NodeJS.Signals | null];
  try {
    ended = (await once(child, 'close')) as typeof ended;
  } catch (error) {
    const missing = (error as NodeJS.ErrnoException).code === 'ENOENT';
    const advice = missing ? '; node scripts/setup.mjs vm installs what is needed' : '';
    throw new BedError(`cannot run ${program}: ${reasonOf(error)}${advice}`);
  } finally {
    forget?.();
  }
  if (options.cleansUp !== true) goOn();
  const [status, signal] = ended;
  const text = Buffer.concat(out).toString();
  if (status === 0 || (status !== null && options.allowed?.includes(status))) return text;
  const how = signal === null ? `status ${status}` : `${signal}`;
  const told = lastLines(Buffer.concat([...out, ...err]).toString(), shownLines);
  throw new BedError(`${line} ended with ${how}: ${told}`);
}
