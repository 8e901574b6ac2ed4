/** `replpage protect`: returns when the first epoch is committed. */
import { resolve } from 'node:path';
import type { Command } from 'commander';
import type { ProtectReport, ProtectRequest } from '../api/schema.js';
import { ReplicationError } from '../base/errors.js';
import { formatBytes, formatUs, parseDurationMs, parsePercent } from '../base/units.js';
import {
  contextOf,
  exitCodes,
  interruptSignal,
  print,
  printJson,
  say,
  withCommonFlags,
  type CommonFlags,
} from './context.js';
import { ProgressBar } from './progress.js';
import { ensureDaemon } from './start-daemon.js';

interface ProtectFlags extends CommonFlags {
  readonly name?: string;
  readonly epoch?: string;
  readonly overhead?: string;
  readonly maxPause?: string;
  readonly attach?: string;
  readonly onExit?: string;
  readonly retries?: string;
  readonly files?: string;
  readonly stdio?: string;
  readonly pidfile?: string;
  readonly onPromote?: string;
  readonly tracker?: string;
}

export function addProtect(program: Command, setStatus: (code: number) => void): void {
  withCommonFlags(program.command('protect'))
    .description('keep a warm replica of a running process and its children')
    .argument('<pid>', 'root of the process tree')
    .option('--name <name>', 'of the group (default: the name of the program)')
    .option('--epoch <time>', 'interval between epochs; stretched to fit the budget', '100ms')
    .option('--overhead <share>', 'of its time that the process may lose', '5%')
    .option('--max-pause <time>', 'longest pause wanted for an epoch', '50ms')
    .option('--attach <mode>', 'always: a kill loses nothing; epochs: up to one epoch', 'always')
    .option('--on-exit <what>', 'when it ends by itself or by SIGTERM: end or promote', 'end')
    .option('--retries <n>', 'crashes answered by a promotion', '3')
    .option('--files <rule>', 'promotion when files have changed since: refuse or keep', 'refuse')
    .option('--stdio <file>', "file for its terminal's output once promoted, or null")
    .option('--pidfile <file>', 'write the pid here after each promotion')
    .option('--on-promote <command>', 'run this after each promotion, with your rights')
    .option('--tracker <kind>', 'auto, uffd-wp or soft-dirty', 'auto')
    .addHelpText(
      'after',
      `
--on-promote finds REPLPAGE_GROUP, REPLPAGE_PID, REPLPAGE_HOST_PID, REPLPAGE_GENERATION,
REPLPAGE_EPOCH and REPLPAGE_EXACT in its environment.

  sudo replpage protect $(pidof redis-server)
  sudo replpage protect 1234 --name web --epoch 50ms --pidfile /run/web.pid`,
    )
    .action(async (pid: string, flags: ProtectFlags) => {
      const request = toRequest(pid, flags);
      const context = contextOf(flags);
      const started = await ensureDaemon(context);
      if (started !== undefined && !context.json) say(`started a daemon (pid ${started})`);
      const bar = new ProgressBar(`copying process ${pid}`);
      const signal = interruptSignal();
      try {
        const report = await context.client.protect(request, {
          onProgress: (bytes, total) => bar.update(bytes, total),
          signal,
        });
        bar.end();
        if (context.json) printJson(report);
        else show(report);
      } catch (error) {
        bar.end();
        if (!signal.aborted) throw error;
        say(`interrupted: process ${pid} is let go and runs on unprotected`);
        setStatus(exitCodes.interrupted);
      }
    });
}

function toRequest(pid: string, flags: ProtectFlags): ProtectRequest {
  // What is not one of the choices is told by the daemon, with what would be.
  const choice = <T extends string>(value: string | undefined): T | undefined =>
    value as T | undefined;
  return {
    pid: wholeNumber(pid, 'pid'),
    name: flags.name,
    intervalMs: parse(flags.epoch, '--epoch', parseDurationMs),
    overhead: parse(flags.overhead, '--overhead', parsePercent),
    maxPauseMs: parse(flags.maxPause, '--max-pause', parseDurationMs),
    attach: choice(flags.attach),
    onExit: choice(flags.onExit),
    files: choice(flags.files),
    retries: parse(flags.retries, '--retries', (text) => wholeNumber(text, '--retries')),
    tracker: choice(flags.tracker),
    stdio: flags.stdio === 'null' ? null : absolute(flags.stdio),
    pidfile: absolute(flags.pidfile),
    onPromote: flags.onPromote,
  };
}

function parse<T>(
  text: string | undefined,
  flag: string,
  parser: (text: string) => T,
): T | undefined {
  if (text === undefined) return undefined;
  try {
    return parser(text);
  } catch (error) {
    if (!(error instanceof ReplicationError)) throw error;
    const { advice } = error;
    throw new ReplicationError('ERR_USAGE', `${flag}: ${error.message}`, { advice });
  }
}

function wholeNumber(text: string, what: string): number {
  if (/^\d{1,9}$/.test(text)) return Number(text);
  throw new ReplicationError('ERR_USAGE', `${what} "${text}" is not a whole number`);
}

const absolute = (path: string | undefined): string | undefined =>
  path === undefined ? undefined : resolve(path);

function show({ group, copiedBytes, copyUs, warnings }: ProtectReport): void {
  const rate = copyUs > 0 ? `, ${formatBytes((copiedBytes / copyUs) * 1e6)}/s` : '';
  print(
    `${group.name}: process ${group.hostPid} is protected ` +
      `(${formatBytes(copiedBytes)} in ${formatUs(copyUs)}${rate}; ${group.tracker})`,
  );
  for (const warning of warnings) say(`warning: ${warning}`);
}
