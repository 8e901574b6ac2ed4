/**
 * Groups that go to other nodes by order: nothing of them is lost, and connections to their service
 * addresses go along. Where the replica is not on the node that is named it is built there first,
 * and the process runs unprotected for that long.
 */
import type { Caller, DaemonControl } from '../api/server.js';
import type { MovesControl } from '../api/moves-routes.js';
import type { DrainReport } from '../api/moves-schema.js';
import type { GroupStatus, ProtectReport } from '../api/schema.js';
import { describe, ReplicationError } from '../base/errors.js';

/** What is asked of the node's groups: see ReplicaTable. */
export interface MovedGroups extends Pick<
  DaemonControl,
  'group' | 'detach' | 'protect' | 'promote'
> {
  readonly groups: readonly { readonly spec: { readonly name: string } }[];
  runsHere(name: string): boolean;
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
   * Resolves when it runs there. Throws what protect() and promote() throw; it runs on here then, and
   * is protected as it was where that is possible.
   */
  async move(caller: Caller, name: string, to: string): Promise<GroupStatus> {
    const { groups } = this.#options;
    const group = await groups.group(caller, name);
    this.#options.check(to);
    if (!group.running) {
      throw new ReplicationError('ERR_ENDED', `cannot move ${name}: it does not run on this node`);
    }
    if (group.to !== to) await this.#buildThere(caller, group, to);
    return groups.promote(caller, name, { to, force: false });
  }

  async #buildThere(caller: Caller, group: GroupStatus, to: string): Promise<void> {
    const { groups } = this.#options;
    const { name, hostPid: pid, state } = group;
    const protect = (place: string): Promise<ProtectReport> =>
      groups.protect(
        caller,
        { pid, name, to: place },
        { onProgress: () => undefined, signal: new AbortController().signal },
      );
    if (state !== 'unprotected' && state !== 'detached') await groups.detach(caller, name);
    try {
      await protect(to);
    } catch (error) {
      const why = `cannot move ${name}: ${describe(error)}`;
      const { code, advice, refusals } = error instanceof ReplicationError ? error : failed;
      const again = await protect(group.to ?? 'self').then(
        () => advice,
        (second: unknown) => `it runs on unprotected: ${describe(second)}`,
      );
      throw new ReplicationError(code, why, { advice: again, refusals });
    }
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
    const holder = targets.find((target) => target.name === group.to);
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

const failed = { code: 'ERR_STATE', advice: undefined, refusals: undefined } as const;
