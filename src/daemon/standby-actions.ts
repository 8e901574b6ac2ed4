/** What users of this node may see of, and do with, the replicas that it keeps for others. */
import type { PromoteRequest, StatusReport } from '../api/schema.js';
import type { Caller } from '../api/server.js';
import { ReplicationError } from '../base/errors.js';
import { isElsewhere, type GroupSpec } from '../capture/group-spec.js';
import type { ReplicaPeers } from './replica-peers.js';

export class StandbyActions {
  readonly #peers: ReplicaPeers;

  constructor(peers: ReplicaPeers) {
    this.#peers = peers;
  }

  has(name: string): boolean {
    return this.#peers.has(name);
  }

  seenBy(caller: Caller): Pick<StatusReport, 'standbys'> {
    const seen = this.#peers.status().filter(({ name }) => this.#mayAct(caller, name));
    return seen.length === 0 ? {} : { standbys: seen };
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
    await this.#peers.promote(name, force);
  }

  /** Throws ERR_NO_REPLICA where a group of this node has none on the node that is named. */
  checkPlace(spec: GroupSpec, to: string | undefined, node: string): void {
    const place = isElsewhere(spec) ? spec.to : undefined;
    const here = to === 'self' || to === node || to === this.#peers.self;
    if (to === undefined || to === place || (place === undefined && here)) return;
    throw new ReplicationError('ERR_NO_REPLICA', `node ${to} has no replica of ${spec.name}`, {
      advice: `it is kept ${place === undefined ? 'here' : `on node ${place}`}`,
    });
  }

  /** Throws ERR_NO_CLUSTER, ERR_NO_NODE, ERR_BAD_REQUEST: that node can keep no replica of it. */
  checkElsewhere({ to, ram }: GroupSpec): void {
    this.#peers.check(to ?? '');
    if (ram === 'all') return;
    throw new ReplicationError(
      'ERR_BAD_REQUEST',
      '--ram: on another node a replica is all in RAM',
      {
        advice: 'leave out --ram, or --to',
      },
    );
  }

  #mayAct({ uid }: Caller, name: string): boolean {
    return uid === 0 || uid === this.#peers.ownerOf(name);
  }

  #check(caller: Caller, name: string): void {
    if (this.#mayAct(caller, name)) return;
    throw new ReplicationError('ERR_DENIED', `user ${caller.uid} may not act on group ${name}`, {
      advice: 'act as the user of its process or as root',
    });
  }
}
