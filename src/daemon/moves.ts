/**
 * Groups that go to other nodes by order: nothing of them is lost, and connections to their service
 * addresses go along. Where no replica is on the node that is named, one is built there first.
 */
import type { Caller, DaemonControl } from '../api/server.js';
import type { MovesControl } from '../api/moves-routes.js';
import type { DrainReport, DrillReport } from '../api/moves-schema.js';
import type { GroupStatus } from '../api/schema.js';
import { describe, ReplicationError } from '../base/errors.js';
import { formatBytes } from '../base/units.js';
import type { GroupReplicas } from '../capture/replicas.js';

/** What is asked of the node's groups: see ReplicaTable. */
export interface MovedGroups extends Pick<DaemonControl, 'group' | 'protect' | 'promote'> {
  readonly groups: readonly { readonly spec: { readonly name: string } }[];
  runsHere(name: string): boolean;
  replicasOf(caller: Caller, name: string): Pick<GroupReplicas, 'want' | 'drill'>;
}

/** Another node of the cluster that can be reached. */
export interface MoveTarget {
  readonly name: string;
  readonly memoryForReplicasBytes: number;
}

export interface MovesOptions {
  readonly groups: MovedGroups;
  /** This node's name in its cluster; empty: in none. */
  self(): string;
  targets(): readonly MoveTarget[];
  /** Throws ERR_NO_CLUSTER, ERR_NO_NODE, ERR_BAD_REQUEST: that node can keep no replica. */
  check(node: string): void;
}

export class Moves implements MovesControl {
  readonly #options: MovesOptions;

  constructor(options: MovesOptions) {
    this.#options = options;
  }

  /**
   * Resolves when it runs there. Throws what replicas, protect() and promote() throw; it runs
   * on here then, protected as it was.
   */
  async move(caller: Caller, name: string, to: string): Promise<GroupStatus> {
    const { groups } = this.#options;
    const group = await groups.group(caller, name);
    if (to === 'self' || to === this.#options.self()) {
      throw new ReplicationError(
        'ERR_BAD_REQUEST',
        `cannot move ${name}: it is on node ${to} already`,
      );
    }
    this.#options.check(to);
    if (!group.running) {
      throw new ReplicationError('ERR_ENDED', `cannot move ${name}: it does not run on this node`);
    }
    const { state, hostPid: pid } = group;
    if (state !== 'unprotected' && state !== 'detached') {
      await groups.replicasOf(caller, name).want(to);
    } else {
      const silent = { onProgress: () => undefined, signal: new AbortController().signal };
      const homes = group.to?.split(',') ?? [];
      const all = homes.includes(to) ? homes : [to, ...homes];
      await groups.protect(caller, { pid, name, to: all.join(',') }, silent);
    }
    return groups.promote(caller, name, { to, force: false });
  }

  /** Throws what replicas throw, and ERR_NO_NODE where memory is short. */
  async drill(caller: Caller, name: string, on: string | undefined): Promise<DrillReport> {
    const { groups } = this.#options;
    const { memory, replicas } = await groups.group(caller, name);
    const self = this.#options.self();
    if (on !== undefined && on !== self) this.#options.check(on);
    const target = this.#options.targets().find((each) => each.name === on);
    if (target !== undefined && target.memoryForReplicasBytes < memory.primaryBytes) {
      const left = formatBytes(target.memoryForReplicasBytes);
      const message = `node ${target.name} has ${left} left for replicas; a drill takes ${formatBytes(memory.primaryBytes)} for a while`;
      throw new ReplicationError('ERR_NO_NODE', message);
    }
    const usual = replicas.some(({ keeperSocket }) => keeperSocket !== '')
      ? 'self'
      : replicas.find(({ state }) => state === 'in sync')?.node;
    const node = on === self ? 'self' : (on ?? usual ?? 'self');
    const began = performance.now();
    const drilled = await groups.replicasOf(caller, name).drill(node);
    const { epoch, problem, promoteUs, comparedPages, threads, calls } = drilled;
    return {
      ...{ name, node: node === 'self' ? self || node : node, epoch },
      ...{ problem: problem === '' ? null : problem, promoteUs, comparedPages },
      ...{ threads, calls },
      ms: Math.round(performance.now() - began),
    };
  }

  /** All that runs here, one after the other. Throws ERR_DENIED, ERR_NO_CLUSTER, ERR_NO_NODE. */
  async drain(caller: Caller, node: string): Promise<DrainReport> {
    const self = this.#options.self();
    if (caller.uid !== 0) {
      throw new ReplicationError('ERR_DENIED', `user ${caller.uid} may not drain a node`, {
        advice: 'only root may',
      });
    }
    if (node !== self) {
      this.#options.check(node);
      throw new ReplicationError('ERR_BAD_REQUEST', `node ${node} is drained from there`, {
        advice: `on ${node}: replpage drain ${node}`,
      });
    }
    const moved: { name: string; to: string }[] = [];
    const left: { name: string; why: string }[] = [];
    for (const { spec } of this.#options.groups.groups) {
      if (!this.#options.groups.runsHere(spec.name)) continue;
      try {
        moved.push({ name: spec.name, to: await this.#moveAway(caller, spec.name) });
      } catch (error) {
        left.push({ name: spec.name, why: describe(error) });
      }
    }
    return { node, moved, left };
  }

  /** Gives where it went: to its replica, else where most memory is free. */
  async #moveAway(caller: Caller, name: string): Promise<string> {
    const group = await this.#options.groups.group(caller, name);
    const targets = [...this.#options.targets()].sort(
      (a, b) => b.memoryForReplicasBytes - a.memoryForReplicasBytes,
    );
    const holders = group.replicas
      .filter(({ state }) => state === 'in sync')
      .map(({ node }) => node);
    const holder = targets.find((target) => holders.includes(target.name));
    const roomy = targets.find(
      ({ memoryForReplicasBytes }) => memoryForReplicasBytes > group.memory.primaryBytes,
    );
    const to = (holder ?? roomy)?.name;
    if (to === undefined) {
      throw new ReplicationError('ERR_NO_NODE', 'no other node is up and has memory for it');
    }
    await this.move(caller, name, to);
    return to;
  }
}
