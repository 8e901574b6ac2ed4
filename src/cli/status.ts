/** `replpage status [NAME] [--watch]`. */
import type { Command } from 'commander';
import { isGroupStatus, type GroupStatus, type StatusReport } from '../api/schema.js';
import { systemClock } from '../base/clock.js';
import { formatBytes, formatMs, formatPercent, formatUs } from '../base/units.js';
import {
  contextOf,
  interruptSignal,
  print,
  withCommonFlags,
  type CommonFlags,
  type Context,
} from './context.js';
import { formatTable } from './table.js';

const watchMs = 1000;

interface StatusFlags extends CommonFlags {
  readonly watch?: boolean;
}

export function addStatus(program: Command): void {
  withCommonFlags(program.command('status'))
    .description('groups, replicas, epoch, lag, pause and memory')
    .argument('[name]', 'of one group, shown in full')
    .option('--watch', 'again every second until interrupted')
    .action(async (name: string | undefined, flags: StatusFlags) => {
      const context = contextOf(flags);
      if (!flags.watch) return print(await look(context, name));
      const signal = interruptSignal();
      while (!signal.aborted) {
        const text = await look(context, name);
        const clear = process.stdout.isTTY && !context.json;
        process.stdout.write(clear ? `\x1b[H\x1b[2J${text}\n` : `${text}\n`);
        await systemClock.sleep(watchMs, signal);
      }
    });
}

async function look(context: Context, name: string | undefined): Promise<string> {
  if (name !== undefined) {
    const group = await context.client.group(name);
    return context.json ? JSON.stringify(group) : groupText(group);
  }
  const status = await context.client.status();
  if (context.json) return JSON.stringify(status);
  const warnings = status.daemon.warnings.map((warning) => `warning: ${warning}`);
  return [statusText(status), ...warnings].join('\n');
}

export function statusText(status: StatusReport): string {
  if (status.groups.length === 0) return 'no groups; protect one with: replpage protect <pid>';
  const head = ['GROUP', 'STATE', 'PID', 'HOST PID', 'EPOCH', 'LAG', 'PAUSE P50', 'RAM'];
  const rows = status.groups.map((group) => {
    if (!isGroupStatus(group)) return [group.name, group.state, '-', '-', '-', '-', '-', '-'];
    return [
      group.name,
      group.state,
      String(group.pid),
      String(group.hostPid),
      String(group.epoch),
      group.lagMs > 0 ? formatMs(group.lagMs) : '-',
      group.pauseUs.p50 > 0 ? formatUs(group.pauseUs.p50) : '-',
      formatBytes(group.memory.primaryBytes),
    ];
  });
  return formatTable([head, ...rows]);
}

export function groupText(group: GroupStatus): string {
  const { pauseUs, memory, interval, overhead, epochs, promotion } = group;
  const pauses = [pauseUs.last, pauseUs.p50, pauseUs.p99, pauseUs.max].map(formatUs).join(', ');
  const ram = `${formatBytes(memory.primaryBytes)} here, ${formatBytes(memory.residentBytes)}`;
  const rows: (readonly [string, string])[] = [
    ['group', group.name],
    ['state', group.reason === null ? group.state : `${group.state}: ${group.reason}`],
    ['process', `pid ${group.pid}, on this machine ${group.hostPid}`],
    ['epoch', `${group.epoch} of generation ${group.generation}, ${formatMs(group.lagMs)} old`],
    ['epochs', `${epochs.committed} committed, ${epochs.abandoned} abandoned`],
    ['interval', `${formatMs(interval.ms)}: ${interval.why}`],
    [
      'overhead',
      `${formatPercent(overhead.used)} of a budget of ${formatPercent(overhead.budget)}`,
    ],
    ['pause', `${pauses} (last, p50, p99, max)`],
    ['memory', `${ram} in the replica, ${formatBytes(memory.coldBytes)} cold`],
    ['tracker', group.tracker ?? '-'],
    ['attach', `${group.attach}; on exit ${group.onExit}; files ${group.files}`],
    ['retries', `${group.retries.left} of ${group.retries.allowed} crashes left`],
    ['output', group.stdio ?? '/dev/null'],
  ];
  if (promotion !== null) {
    const lost = promotion.exact ? 'nothing lost' : `from epoch ${promotion.epoch}`;
    rows.push(['promoted', `${lost}, ran ${formatUs(promotion.deathToRunUs)} after the death`]);
  }
  for (const warning of group.warnings) rows.push(['warning', warning]);
  return formatTable(rows);
}
