/** A group as the API shows it. */
import type { GroupBrief, GroupStatus, RamStatus } from '../api/schema.js';
import { retriesLeft } from '../capture/group-state.js';
import type { GroupSnapshot, PagingTurn } from '../capture/group-snapshot.js';
import { hasPeers, type GroupSpec } from '../capture/group-spec.js';
import { here } from '../capture/replicas.js';
import type { KeeperStatus } from '../native/keeper-status.js';
import type { AddressStatus } from './service-addresses.js';

export interface Place {
  readonly node: string;
  readonly keepersDir: string;
  readonly storeDir: string;
  /** Of the root as it sees itself; undefined when it is gone. */
  readonly ownPid: number | undefined;
  readonly running: boolean;
  /** What the replica takes; undefined: nobody has asked. */
  readonly ram: RamStatus | undefined;
  /** About the process as it is now; those of its start come with the snapshot. */
  readonly warnings: readonly string[];
  /** Its service address, where that was taken. */
  readonly address: AddressStatus | undefined;
}

export function groupBrief(snapshot: GroupSnapshot, node: string): GroupBrief {
  return { name: snapshot.spec.name, state: snapshot.core.phase.kind, node, details: false };
}

export function groupStatus(snapshot: GroupSnapshot, place: Place): GroupStatus {
  const { core, spec, pace } = snapshot;
  const { phase, promotion } = core;
  return {
    name: spec.name,
    state: phase.kind,
    reason: 'reason' in phase ? (phase.reason ?? null) : null,
    node: place.node,
    details: true,
    pid: place.ownPid ?? promotion?.pid ?? core.hostPid,
    hostPid: core.hostPid,
    running: place.running,
    generation: core.generation,
    epoch: core.epoch,
    lagMs: isKept(snapshot) ? snapshot.lagMs : 0,
    pauseUs: snapshot.pauseUs.summary(),
    memory: memoryOf(snapshot, (isKept(snapshot) ? place.ram : undefined) ?? null),
    ram: spec.ram,
    coldAfterMs: spec.coldAfterMs,
    store: spec.store ?? null,
    paging: snapshot.paging === undefined ? null : pagingOf(snapshot.paging, place.storeDir, spec),
    refill: snapshot.refill === undefined ? null : refillOf(snapshot.refill),
    replicas: replicasOf(snapshot, place),
    interval: {
      ms: Math.round(pace.intervalMs * 10) / 10,
      askedMs: spec.intervalMs,
      boundBy: pace.bound,
      why: pace.why,
    },
    overhead: { budget: spec.overhead, used: Math.round(pace.overheadUsed * 10_000) / 10_000 },
    maxPauseMs: spec.maxPauseMs,
    epochs: { committed: core.committedTotal, abandoned: core.abandonedTotal },
    lastEpoch: lastEpochOf(snapshot),
    progress: progressOf(phase),
    tracker: snapshot.start?.tracker ?? null,
    trackerAsked: spec.tracker,
    attach: spec.attach,
    onExit: spec.onExit,
    files: spec.files,
    retries: { allowed: spec.retries, left: retriesLeft(core) },
    stdio: spec.stdio,
    pidfile: spec.pidfile ?? null,
    onPromote: spec.onPromote ?? null,
    onFence: spec.onFence ?? null,
    vip: vipOf(spec, place.address),
    to: hasPeers(spec) ? (spec.to ?? null) : null,
    shipFiles: spec.shipFiles,
    promotion: promotion === undefined ? null : promotionOf(promotion),
    warnings: [
      ...place.warnings,
      ...(isKept(snapshot) ? replicasOut(snapshot) : []),
      ...(snapshot.start?.warnings ?? []),
    ],
    counters: snapshot.counters,
  };
}

function vipOf({ vip }: GroupSpec, held: AddressStatus | undefined): GroupStatus['vip'] {
  if (vip === undefined) return null;
  const mine = held?.address === vip ? held : undefined;
  const here = mine !== undefined && mine.trouble === null;
  return { address: vip, here, wasThere: mine?.wasThere ?? false, trouble: mine?.trouble ?? null };
}

const pageBytes = 4096;

function pagingOf(
  report: PagingTurn,
  storeDir: string,
  spec: GroupSpec,
): NonNullable<GroupStatus['paging']> {
  const { samples, sampleShare, storeBytes, writtenBytes, evictedBytes } = report;
  const { broughtBackBytes, movedBytes, tableBytes, pagerPid } = report;
  return {
    accessTracker: report.tracker,
    samples,
    samplePeriodMs: Math.round(report.periodUs / 1000),
    sampleShare,
    store: spec.store ?? storeDir,
    storeState: report.store,
    why: report.why,
    trouble: report.trouble === '' ? null : report.trouble,
    storeBytes,
    writtenBytes,
    evictedBytes,
    broughtBackBytes,
    movedBytes,
    tableBytes,
    pagerPid,
  };
}

function refillOf(keeper: KeeperStatus): NonNullable<GroupStatus['refill']> {
  return {
    coldBytes: keeper.coldPages * pageBytes,
    damagedBytes: keeper.damagedPages * pageBytes,
    waitingFaults: keeper.waitingFaults,
    waitingMs: Math.round(keeper.waitingUs / 1000),
    trouble: keeper.storeTrouble === '' ? null : keeper.storeTrouble,
  };
}

function progressOf(phase: GroupSnapshot['core']['phase']): GroupStatus['progress'] {
  if (phase.kind !== 'protecting') return null;
  return { bytes: phase.bytes, bytesTotal: phase.bytesTotal };
}

/** A replica stands by. */
function isKept({ core }: GroupSnapshot): boolean {
  return ['protected', 'lagging', 'promoting'].includes(core.phase.kind);
}

function memoryOf(snapshot: GroupSnapshot, ram: RamStatus | null): GroupStatus['memory'] {
  const last = snapshot.lastEpoch;
  if (last === undefined) {
    const copied = snapshot.start?.copiedBytes ?? 0;
    return {
      primaryBytes: copied,
      residentBytes: isKept(snapshot) ? copied : 0,
      coldBytes: 0,
      absentBytes: 0,
      ram,
    };
  }
  return {
    primaryBytes: last.primaryBytes,
    residentBytes: isKept(snapshot) ? last.residentBytes : 0,
    coldBytes: isKept(snapshot) ? last.coldBytes : (snapshot.refill?.coldPages ?? 0) * pageBytes,
    absentBytes: Math.max(0, last.mappedBytes - last.residentBytes - last.coldBytes),
    ram,
  };
}

function replicasOf(snapshot: GroupSnapshot, place: Place): GroupStatus['replicas'] {
  if (!isKept(snapshot)) return [];
  const { core, spec, replicas } = snapshot;
  return replicas.map(({ node, rank, state, why, epoch, residentBytes }) => ({
    node: node === here ? place.node : node,
    ...{ rank, epoch: state === 'in sync' ? core.epoch : epoch },
    state: core.phase.kind === 'promoting' && state === 'in sync' ? 'promoting' : state,
    ...{ reason: why, residentBytes },
    keeperSocket: node === here ? `${place.keepersDir}/${spec.name}.${core.generation}.sock` : '',
  }));
}

/** What protects less than was asked for is not to be overlooked. */
const replicasOut = ({ replicas }: GroupSnapshot): readonly string[] =>
  replicas
    .filter(({ state }) => state === 'out' || state === 'joining')
    .map(({ node, state, why }) =>
      state === 'out'
        ? `the replica on ${node} is out: ${why ?? 'it is not there yet'}`
        : `the replica on ${node} is being built`,
    );

function lastEpochOf({ lastEpoch }: GroupSnapshot): GroupStatus['lastEpoch'] {
  if (lastEpoch === undefined) return null;
  const { dirtyPages, bytes, copyUs, commitUs, cpuUs, precopyRounds, threads, processes } =
    lastEpoch;
  return { dirtyPages, bytes, copyUs, commitUs, cpuUs, precopyRounds, threads, processes };
}

function promotionOf(
  promotion: NonNullable<GroupSnapshot['core']['promotion']>,
): NonNullable<GroupStatus['promotion']> {
  const { epoch, pid, hostPid, exact, decisionToRunUs, deathToRunUs, lazyPages } = promotion;
  const lostMs = promotion.lostMs ?? (exact ? 0 : null);
  const whyNotExact = promotion.whyNotExact === '' ? null : (promotion.whyNotExact ?? null);
  const times = { decisionToRunUs, deathToRunUs };
  return { epoch, pid, hostPid, exact, lostMs, ...times, lazyPages, whyNotExact };
}
