/** `replpage protect`: returns when the first epoch is committed. */
import { existsSync, readFileSync } from 'node:fs';
import type { Command } from 'commander';
import { protectDefaults, type ProtectReport } from '../api/schema.js';
import { systemClock } from '../base/clock.js';
import { hasCode, ReplicationError } from '../base/errors.js';
import { formatBytes, formatMs, formatPercent, formatUs } from '../base/units.js';
import {
  contextOf,
  interruptSignal,
  print,
  printJson,
  say,
  withCommonFlags,
  type CommonFlags,
  type Context,
} from './context.js';
import { ProgressBar } from './progress.js';
import { optionsText, toRequest, type ProtectFlags } from './protect-options.js';
import { ensureDaemon } from './start-daemon.js';

/** How long the daemon may take to let a process go before it is not waited for any more. */
const letGoMs = 10_000;

const examples = `
A process that was detached, or whose protection was lost, keeps the options that it had: give
only what is to change. To change an option of a group that is protected, or to drop --pidfile or
--on-promote, unprotect the group and protect it again.
--on-promote and --on-fence find in their environment: REPLPAGE_EVENT (promote or fence),
REPLPAGE_GROUP, REPLPAGE_NODE, REPLPAGE_REASON, REPLPAGE_PID, REPLPAGE_HOST_PID, REPLPAGE_GENERATION,
REPLPAGE_EPOCH, REPLPAGE_EXACT and REPLPAGE_VIP. They have 30 seconds. One machine alone fences nobody.

  sudo replpage protect $(pidof redis-server)
  sudo replpage protect 1234 --name web --epoch 50ms --pidfile /run/web.pid
  sudo replpage protect 1234 --ram 30% --store /mnt/store
  sudo replpage protect 1234 --name web --vip 10.0.0.9/24@eth0`;

export function addProtect(program: Command): void {
  const { intervalMs, overhead, maxPauseMs, retries, coldAfterMs } = protectDefaults;
  withCommonFlags(program.command('protect'))
    .description('keep a warm replica of a running process and its children')
    .argument('<pid>', 'root of the process tree')
    .option('--name <name>', 'of the group (default: that of the program)')
    .option(
      '--epoch <time>',
      'interval between epochs, 10ms to 60s; stretched to fit the budget ' +
        `(default ${formatMs(intervalMs)})`,
    )
    .option(
      '--overhead <share>',
      `of its time that the process may lose, 0.01% to 100% (default ${formatPercent(overhead)})`,
    )
    .option(
      '--max-pause <time>',
      `longest pause of an epoch, 100us to 60s (default ${formatMs(maxPauseMs)})`,
    )
    .option(
      '--to <node>',
      'node of the cluster that keeps a replica, or self for this machine (the default); several by ' +
        'rank: --to self --to b --to c',
      (node: string, before?: string) => (before === undefined ? node : `${before},${node}`),
    )
    .option('--replicas <n>', 'instead of --to: on so many other nodes, with most memory free')
    .option(
      '--ship-files <rule>',
      'programs and libraries that the node lacks or has differently are sent there: mapped ' +
        '(default) or never',
    )
    .option('--attach <mode>', 'always (default): a kill loses nothing; epochs: up to one epoch')
    .option('--on-exit <what>', 'when it ends by itself or by SIGTERM: end (default) or promote')
    .option('--retries <n>', `crashes answered by a promotion, 0 to 1000 (default ${retries})`)
    .option('--files <rule>', 'promotion when files have changed: refuse (default) or keep')
    .option(
      '--stdio <file>',
      "file for its terminal's output once promoted, or null (default: NAME.log in the log folder)",
    )
    .option(
      '--pidfile <file>',
      'write the pid here after each promotion; the file holds nothing else',
    )
    .option('--on-promote <command>', 'run this after each promotion, with your rights')
    .option('--on-fence <command>', 'run this when the group may not run on this node any more')
    .option(
      '--vip <address>',
      'service address that is where the group is: ADDRESS/PREFIX@INTERFACE, for root',
    )
    .option('--tracker <kind>', 'auto (default), uffd-wp or soft-dirty')
    .option(
      '--ram <what>',
      'what the replica holds in RAM: all (default), hot, or a share of the memory such as 30%; ' +
        'the rest is in the page store',
    )
    .option(
      '--cold-after <time>',
      `untouched for so long is cold, 1s to 24h (default ${formatMs(coldAfterMs)})`,
    )
    .option('--store <dir>', "page store, used with your rights (default: the daemon's)")
    .addHelpText('after', examples)
    .action(protect);
}

async function protect(pid: string, flags: ProtectFlags & CommonFlags): Promise<void> {
  const request = toRequest(pid, flags);
  const context = contextOf(flags);
  const started = await daemonFor(request.pid, context);
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
    throw await interrupted(request.pid);
  }
}

/** No daemon is started for a process that is not there. */
async function daemonFor(pid: number, context: Context): Promise<number | undefined> {
  if (existsSync(`/proc/${pid}`)) return ensureDaemon(context);
  try {
    await context.client.status();
    return undefined;
  } catch (error) {
    if (!hasCode(error, 'ERR_NO_DAEMON')) throw error;
    const message = `cannot protect process ${pid}: there is no such process`;
    throw new ReplicationError('ERR_NO_PROCESS', message);
  }
}

/** Waits until the daemon has let the process go, and says so. */
async function interrupted(pid: number): Promise<ReplicationError> {
  const deadline = systemClock.nowMs() + letGoMs;
  let tracer = tracerOf(pid);
  while (tracer !== undefined && tracer > 0 && systemClock.nowMs() < deadline) {
    await systemClock.sleep(20);
    tracer = tracerOf(pid);
  }
  const what =
    tracer === undefined
      ? 'has ended'
      : tracer > 0
        ? `is still traced by process ${tracer}; see replpage status`
        : 'was let go and runs on unprotected';
  return new ReplicationError('ERR_INTERRUPTED', `interrupted: process ${pid} ${what}`);
}

function tracerOf(pid: number): number | undefined {
  try {
    const status = readFileSync(`/proc/${pid}/status`, 'utf8');
    return Number(/^TracerPid:\s*(\d+)$/m.exec(status)?.[1] ?? 0);
  } catch {
    return undefined;
  }
}

function show({ group, copiedBytes, copyUs, warnings, takenOver }: ProtectReport): void {
  const rate = copyUs > 0 ? `, ${formatBytes((copiedBytes / copyUs) * 1e6)}/s` : '';
  print(
    `${group.name}: process ${group.hostPid} is protected ` +
      `(${formatBytes(copiedBytes)} in ${formatUs(copyUs)}${rate}; ${group.tracker})`,
  );
  if (takenOver.length > 0) say(`options as before: ${optionsText(group, takenOver)}`);
  for (const warning of warnings) say(`warning: ${warning}`);
}
