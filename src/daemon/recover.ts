/**
 * What a restarted daemon does with each group of its state file. Pure: facts in, decision out.
 * A primary that still runs is protected again; one that was promoted meanwhile, by its keeper, is
 * found through the keeper's socket; otherwise the group has ended. Nothing is promoted here.
 */
import { isOver, newGroup, type GroupCore } from '../capture/group-state.js';
import type { KeeperStatus } from '../native/keeper-status.js';
import type { GroupRecord } from './state-file.js';

export interface FoundKeeper {
  readonly generation: number;
  readonly socket: string;
  readonly status: KeeperStatus;
}

export interface RecoveryFacts {
  readonly sameBoot: boolean;
  /** The recorded process still runs: same pid, same start time. */
  readonly primaryAlive: boolean;
  /** Keepers of this group that answered. */
  readonly keepers: readonly FoundKeeper[];
}

export type Recovery =
  | { readonly kind: 'keep'; readonly core: GroupCore }
  | { readonly kind: 'protect'; readonly core: GroupCore }
  | { readonly kind: 'wait'; readonly core: GroupCore; readonly keeperSocket: string };

/** A name of a keeper's socket: `<group>.<generation>.sock`. */
export function parseKeeperName(
  file: string,
): { readonly name: string; readonly generation: number } | undefined {
  const match = /^(.+)\.(\d+)\.sock$/.exec(file);
  if (match?.[1] === undefined) return undefined;
  return { name: match[1], generation: Number(match[2]) };
}

export function recover(record: GroupRecord, facts: RecoveryFacts): Recovery {
  const { core } = record;
  if (isOver(core.phase.kind)) return { kind: 'keep', core };
  if (!facts.sameBoot) return ended(core, 'the machine was restarted');
  const generation =
    Math.max(core.generation, ...facts.keepers.map((keeper) => keeper.generation)) + 1;
  // The record may be older than a promotion: what a keeper runs is newer than what it replaced.
  const running = facts.keepers.filter(runsPromoted).sort((a, b) => b.generation - a.generation)[0];
  if (running !== undefined) return found(record, running, generation);
  if (!facts.primaryAlive) return ended(core, 'the process ended while no daemon watched it');
  return { kind: 'protect', core: resumed(record, core.hostPid, generation) };
}

/** What it keeps is a running process, not a replica that stands by. */
export function runsPromoted({ status }: FoundKeeper): boolean {
  return !status.exited && status.hostPid > 0 && runningStates.includes(status.state);
}

/** States in which a keeper's replica is the running process. */
const runningStates: readonly string[] = ['promoted', 'refilling', 'running'];

function found(record: GroupRecord, keeper: FoundKeeper, generation: number): Recovery {
  const { status } = keeper;
  const core = resumed(record, status.hostPid, generation);
  if (status.lazyPages + status.coldPages === 0) return { kind: 'protect', core };
  return {
    kind: 'wait',
    core: {
      ...core,
      phase: { kind: 'promoted', lazyPages: status.lazyPages },
      epoch: status.epoch,
    },
    keeperSocket: keeper.socket,
  };
}

function resumed(record: GroupRecord, hostPid: number, generation: number): GroupCore {
  const { core, spec } = record;
  return {
    ...newGroup(hostPid, generation, spec.retries),
    epoch: core.epoch,
    crashes: core.crashes,
    committedTotal: core.committedTotal,
    abandonedTotal: core.abandonedTotal,
    promotion: core.promotion,
    resumed: true,
  };
}

function ended(core: GroupCore, reason: string): Recovery {
  return { kind: 'keep', core: { ...core, phase: { kind: 'ended', reason } } };
}
