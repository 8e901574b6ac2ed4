/** What users of this node may see of, and do with, the replicas that it keeps for others. */
import type { PromoteRequest, ProtectRequest, StatusReport } from '../api/schema.js';
import type { Caller } from '../api/server.js';
import { ReplicationError } from '../base/errors.js';
import type { Group } from '../capture/group.js';
import { hasPeers, homesOf, type GroupSpec } from '../capture/group-spec.js';
import type { KeptReplicas } from './kept-replicas.js';
import type { ReplicaPeers } from './replica-peers.js';

export class StandbyActions {
  readonly #peers: ReplicaPeers;
  readonly #kept: KeptReplicas;

  constructor(peers: ReplicaPeers, kept: KeptReplicas) {
    this.#peers = peers;
    this.#kept = kept;
  }

  has(name: string): boolean {
    return this.#kept.has(name);
  }

  seenBy(caller: Caller): Pick<StatusReport, 'standbys'> {
    const seen = this.#kept.status().filter(({ name }) => this.#mayAct(caller, name));
    return seen.length === 0 ? {} : { standbys: seen };
  }

  /** Of a group that runs on another node its replica may be here. */
  noGroup(caller: Caller, name: string): ReplicationError {
    const kept = this.#kept.status().find((standby) => standby.name === name);
    if (kept === undefined || !this.#mayAct(caller, name)) {
      return new ReplicationError('ERR_NO_GROUP', `there is no group ${name}`, {
        advice: 'replpage status shows those there are',
      });
    }
    const where = `it runs, or ran, on node ${kept.node}; its replica here is at epoch ${kept.epoch}`;
    return new ReplicationError('ERR_NO_GROUP', `group ${name} is not this node's: ${where}`, {
      advice: `on ${kept.node}, type the same; here replpage promote ${name} runs the replica`,
    });
  }

  /** Resolves when it runs here. Throws ERR_DENIED, ERR_NO_REPLICA, ERR_STATE. */
  async promote(caller: Caller, name: string, { to, force }: PromoteRequest): Promise<void> {
    this.#check(caller, name);
    const { self } = this.#peers;
    if (to !== undefined && to !== self) {
      const message = `cannot promote ${name} on node ${to} from here`;
      throw new ReplicationError('ERR_NO_REPLICA', message, {
        advice: `this node, ${self}, has a replica of it; for another one type it there`,
      });
    }
    await this.#kept.promote(name, force);
  }

  /**
   * Which replica of a group of this node is meant; undefined: the best. Throws ERR_NO_REPLICA where
   * it has none there.
   */
  placeOf(group: Group, to: string | undefined, node: string): string | undefined {
    if (to === undefined) return undefined;
    const { spec } = group;
    const here = to === 'self' || to === node || to === this.#peers.self;
    const home = here ? 'self' : to;
    if (group.snapshot().replicas.some((replica) => replica.node === home)) return home;
    throw new ReplicationError('ERR_NO_REPLICA', `node ${to} has no replica of ${spec.name}`, {
      advice: `kept on: ${homesOf(spec).join(', ')}; replpage move builds one where there is none`,
    });
  }

  /** Where so many replicas are to be. Throws ERR_BAD_REQUEST, ERR_NO_CLUSTER, ERR_NO_NODE. */
  chosen({ to, replicas }: ProtectRequest): Pick<ProtectRequest, 'to'> {
    if (replicas === undefined) return { to: to === undefined ? to : this.#namedAlike(to) };
    if (to === undefined) return { to: this.#peers.choose(replicas) };
    throw new ReplicationError('ERR_BAD_REQUEST', '--replicas: --to says which nodes already');
  }

  /** This node may be called by its name. */
  #namedAlike(to: string): string {
    const { self } = this.#peers;
    const homes = to.split(',').map((home) => (home === self ? 'self' : home));
    return homes.join(',');
  }

  /** Throws ERR_NO_CLUSTER, ERR_NO_NODE, ERR_BAD_REQUEST: such nodes can keep no replica of it. */
  checkHomes(spec: GroupSpec): void {
    const homes = homesOf(spec);
    if (new Set(homes).size !== homes.length) {
      throw new ReplicationError('ERR_BAD_REQUEST', '--to: a node is named twice');
    }
    for (const node of homes) this.#peers.check(node);
    if (!hasPeers(spec) || spec.ram === 'all') return;
    throw new ReplicationError(
      'ERR_BAD_REQUEST',
      '--ram: on another node a replica is all in RAM',
      {
        advice: 'leave out --ram, or --to',
      },
    );
  }

  #mayAct({ uid }: Caller, name: string): boolean {
    return uid === 0 || uid === this.#kept.ownerOf(name);
  }

  #check(caller: Caller, name: string): void {
    if (this.#mayAct(caller, name)) return;
    throw new ReplicationError('ERR_DENIED', `user ${caller.uid} may not act on group ${name}`, {
      advice: 'act as the user of its process or as root',
    });
  }
}
