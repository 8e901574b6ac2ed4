/** `replpage status [NAME] [--watch]`. */
import type { Command } from 'commander';
import {
  isGroupStatus,
  type GroupStatus,
  type StandbyStatus,
  type StatusReport,
} from '../api/schema.js';
import { systemClock } from '../base/clock.js';
import { formatBytes, formatLoss, formatMs, formatPercent, formatUs } from '../base/units.js';
import {
  contextOf,
  groupName,
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
    const group = await context.client.group(groupName(name));
    return context.json ? JSON.stringify(group) : groupText(group);
  }
  const status = await context.client.status();
  if (context.json) return JSON.stringify(status);
  const warnings = status.daemon.warnings.map((warning) => `warning: ${warning}`);
  return [statusText(status), ...warnings].join('\n');
}

export function statusText(status: StatusReport): string {
  const standbys = standbysText(status.standbys ?? []);
  if (status.groups.length === 0) {
    return standbys ?? 'no groups; protect one with: replpage protect <pid>';
  }
  const head = [
    'GROUP',
    'STATE',
    'HOST PID',
    'OWN PID',
    'EPOCH',
    'LAG',
    'PAUSE P50',
    'RAM',
    'REPLICA',
  ];
  const rows = status.groups.map((group) => {
    if (!isGroupStatus(group)) return [group.name, group.state, '-', '-', '-', '-', '-', '-', '-'];
    return [
      group.name,
      group.state,
      group.running ? String(group.hostPid) : '-',
      group.running ? String(group.pid) : '-',
      String(group.epoch),
      group.lagMs > 0 ? formatMs(group.lagMs) : '-',
      group.pauseUs.p50 > 0 ? formatUs(group.pauseUs.p50) : '-',
      ramText(group),
      replicaText(group),
    ];
  });
  const reasons = status.groups.flatMap((group) =>
    isGroupStatus(group) && group.reason !== null
      ? [`${group.name} is ${group.state}: ${group.reason}`]
      : [],
  );
  const missing = status.groups.flatMap((group) =>
    isGroupStatus(group) && group.to !== null
      ? group.replicas
          .filter(({ state }) => state === 'out' || state === 'joining')
          .map(({ node, state }) => `${group.name}: its replica on ${node} is ${state}`)
      : [],
  );
  const kept = standbys === undefined ? [] : ['', standbys];
  return [formatTable([head, ...rows]), ...reasons, ...missing, ...kept].join('\n');
}

function standbysText(standbys: readonly StandbyStatus[]): string | undefined {
  if (standbys.length === 0) return undefined;
  const rows = standbys.map((one) => [
    ...[one.name, one.node, one.state, String(one.epoch)],
    one.epoch > 0 ? formatMs(one.lagMs) : '-',
    formatBytes(one.residentBytes),
  ]);
  const reasons = standbys.flatMap(({ name, state, reason }) =>
    reason === null ? [] : [`the replica of ${name} is ${state}: ${reason}`],
  );
  const head = ['STANDS BY FOR', 'NODE', 'STATE', 'EPOCH', 'AGE', 'RAM'];
  return [formatTable([head, ...rows]), ...reasons].join('\n');
}

function ramText({ progress, memory }: GroupStatus): string {
  if (progress !== null && progress.bytesTotal > 0) return copiedText(progress);
  return memory.primaryBytes > 0 ? formatBytes(memory.primaryBytes) : '-';
}

/** What of it is in RAM, and what is in the page store only. */
function replicaText({ memory, refill }: GroupStatus): string {
  const { residentBytes, coldBytes } = memory;
  if (refill !== null && refill.coldBytes > 0) return `${formatBytes(refill.coldBytes)} to come`;
  if (residentBytes === 0 && coldBytes === 0) return '-';
  const cold = coldBytes > 0 ? `, ${formatBytes(coldBytes)} cold` : '';
  return `${formatBytes(residentBytes)}${cold}`;
}

/** Of a first copy. */
function copiedText({ bytes, bytesTotal }: NonNullable<GroupStatus['progress']>): string {
  return `${formatBytes(bytes)} of ${formatBytes(Math.max(bytes, bytesTotal))} copied`;
}

export function groupText(group: GroupStatus): string {
  const { pauseUs, memory, interval, overhead, epochs, promotion } = group;
  const pauses = [pauseUs.last, pauseUs.p50, pauseUs.p99, pauseUs.max].map(formatUs).join(', ');
  const ram = `${formatBytes(memory.primaryBytes)} here, ${formatBytes(memory.residentBytes)}`;
  const age = group.lagMs > 0 ? `, ${formatMs(group.lagMs)} old` : '';
  const rows: (readonly [string, string])[] = [
    ['group', group.name],
    ['state', group.reason === null ? group.state : `${group.state}: ${group.reason}`],
    ['process', processText(group)],
    ['epoch', `${group.epoch} of generation ${group.generation}${age}`],
    ['epochs', `${epochs.committed} committed, ${epochs.abandoned} abandoned`],
    ['interval', `${formatMs(interval.ms)}: ${interval.why}`],
    [
      'overhead',
      `${formatPercent(overhead.used)} of a budget of ${formatPercent(overhead.budget)}`,
    ],
    ['pause', `${pauses} (last, p50, p99, max)`],
    [
      'memory',
      group.progress === null
        ? `${ram} in the replica, ${formatBytes(memory.coldBytes)} cold`
        : copiedText(group.progress),
    ],
    ['ram', ramSettingText(group)],
    ...ramRows(memory),
    ...pagingRows(group),
    ...replicaRows(group),
    ['tracker', group.tracker ?? '-'],
    ['attach', `${group.attach}; on exit ${group.onExit}; files ${group.files}`],
    ['retries', `${group.retries.left} of ${group.retries.allowed} crashes left`],
    ['output', group.stdio ?? '/dev/null'],
    ['pid file', group.pidfile ?? '-'],
    ['on promote', group.onPromote ?? '-'],
    ['on fence', group.onFence ?? '-'],
    ['address', addressText(group)],
  ];
  if (promotion !== null) {
    const lost = formatLoss(promotion);
    rows.push(['promoted', `${lost}, ran ${formatUs(promotion.deathToRunUs)} after the death`]);
  }
  for (const warning of group.warnings) rows.push(['warning', warning]);
  return formatTable(rows);
}

function replicaRows({ to, replicas }: GroupStatus): (readonly [string, string])[] {
  if (to === null) return [];
  if (replicas.length === 0) return [['replicas', `on ${to}`]];
  return replicas.map(({ node, rank, state, epoch, reason }) => [
    rank === 1 ? 'replicas' : '',
    `${rank} on node ${node}: ${state}${epoch > 0 ? `, epoch ${epoch}` : ''}${reason === null ? '' : `: ${reason}`}`,
  ]);
}

function addressText({ vip }: GroupStatus): string {
  if (vip === null) return '-';
  if (vip.trouble !== null) return `${vip.address}, which is not there: ${vip.trouble}`;
  if (!vip.here) return `${vip.address}, not here`;
  return vip.wasThere ? `${vip.address}, as it was before` : vip.address;
}

function ramSettingText({ ram, coldAfterMs, paging }: GroupStatus): string {
  if (ram === 'all') return 'all; nothing goes to the page store';
  return `${ram}; cold after ${formatMs(coldAfterMs)}${paging === null ? '' : `: ${paging.why}`}`;
}

function ramRows({ ram }: GroupStatus['memory']): (readonly [string, string])[] {
  if (ram === null) return [];
  const parts = [
    `replica ${formatBytes(ram.replicaBytes)}`,
    `keeper ${formatBytes(ram.keeperBytes)}`,
    `pager ${formatBytes(ram.pagerBytes)}`,
    `staging ${formatBytes(ram.stagingBytes)}`,
    `index ${formatBytes(ram.indexBytes)}`,
  ];
  return [['takes', `${formatBytes(ram.totalBytes)} of RAM: ${parts.join(', ')}`]];
}

function pagingRows({ paging, refill }: GroupStatus): (readonly [string, string])[] {
  const rows: (readonly [string, string])[] = [];
  if (paging !== null) {
    const { store, storeState, storeBytes, accessTracker, samplePeriodMs, sampleShare } = paging;
    const trouble = paging.trouble === null ? '' : `: ${paging.trouble}`;
    rows.push(['page store', `${store}, ${formatBytes(storeBytes)}, ${storeState}${trouble}`]);
    const every = `every ${formatMs(samplePeriodMs)}, ${formatPercent(sampleShare)} of a processor`;
    rows.push(['touched', `by ${accessTracker}, ${every}`]);
  }
  if (refill !== null) {
    const waiting = refill.waitingFaults === 0 ? '' : `, ${refill.waitingFaults} threads wait`;
    const trouble = refill.trouble === null ? '' : `: ${refill.trouble}`;
    rows.push(['refill', `${formatBytes(refill.coldBytes)} to come${waiting}${trouble}`]);
    if (refill.damagedBytes > 0) {
      rows.push(['damaged', `${formatBytes(refill.damagedBytes)}; touching it raises SIGBUS`]);
    }
  }
  return rows;
}

/** The pid of this machine is the one to kill and trace; the program knows itself by the other. */
function processText({ hostPid, pid, running }: GroupStatus): string {
  const own = pid === hostPid ? '' : `; to itself, inside its own namespace, ${pid}`;
  return running ? `${hostPid} (to kill, trace or protect)${own}` : `${hostPid}, which has ended`;
}
