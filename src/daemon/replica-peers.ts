/**
 * Replicas that other nodes keep for groups of this one: asks for them, and says which may be
 * promoted. What this node keeps for others is in kept-replicas.ts.
 */
import { ReplicationError } from '../base/errors.js';
import type { GroupHost, GroupSpec, InSync, PeerPlaces } from '../capture/group-spec.js';
import type { Member, ReplicaMessage, ShippedFile } from '../format/peer-messages.js';
import type { ClusterNode } from '../membership/cluster-node.js';
import type { RequiredFile } from '../native/requirements.js';
import type { NativePlace } from '../native/standby.js';
import { sendFile } from '../replica/file-sender.js';
import { parseAddress } from '../transport/peer-tls.js';
import type { DaemonConfig } from './config.js';
import type { KeptReplicas } from './kept-replicas.js';
import type { MoveTarget } from './moves.js';
import { defaultOutput } from './new-spec.js';
import { requirementsOf } from './node-check.js';
import { isAnswer, type PeerRequests } from './peer-requests.js';
import type { ReplicaRecords } from './replica-records.js';

export interface ReplicaPeersOptions {
  readonly config: DaemonConfig;
  readonly host: Pick<GroupHost, 'note'>;
  readonly requests: PeerRequests;
  readonly records: ReplicaRecords;
  readonly kept: KeptReplicas;
  /** undefined: in no cluster. */
  cluster(): ClusterNode | undefined;
}

const answerMs = 30_000;

export class ReplicaPeers implements PeerPlaces {
  readonly #options: ReplicaPeersOptions;

  constructor(options: ReplicaPeersOptions) {
    this.#options = options;
  }

  async place(
    spec: GroupSpec,
    node: string,
    hostPid: number,
    generation: number,
  ): Promise<NativePlace> {
    const cluster = this.#cluster();
    const member = this.#memberCalled(node);
    const { config } = this.#options;
    const { bytes, files } = await requirementsOf(hostPid);
    const prepare = (shipped: readonly ShippedFile[]) =>
      this.#options.requests.ask(cluster, member, 'replicaPrepared', answerMs, (request) => ({
        kind: 'prepareReplica',
        body: {
          ...{ request, name: spec.name, generation, spec: JSON.stringify(spec), shipped },
          ownOutput: spec.stdio === defaultOutput(config.logDir, spec.name),
          requirements: bytes.toString('base64'),
        },
      }));
    let prepared = await prepare([]);
    if (prepared.refusal === null && prepared.wants.length > 0) {
      const group = { name: spec.name, generation };
      prepared = await prepare(await this.#ship(cluster, member, group, files, prepared.wants));
    }
    const { refusal, port, token, wants } = prepared;
    const why = refusal ?? (wants.length > 0 ? 'it wants shipped files once more' : null);
    if (why !== null) {
      throw new ReplicationError('ERR_REFUSED', `node ${node} keeps no replica: ${why}`);
    }
    const host = parseAddress(member.address)?.host ?? '';
    return { host, port, node: member.id, token, credentials: cluster.credentials };
  }

  end({ name }: GroupSpec, generation: number): void {
    const cluster = this.#options.cluster();
    this.#options.records.forget(name);
    for (const { member } of cluster?.nodes ?? []) {
      if (member.removed || member.id === cluster?.self.id) continue;
      cluster?.send(member.id, { kind: 'dropReplica', body: { name, generation } });
    }
  }

  record(group: InSync): Promise<readonly string[]> {
    return this.#options.records.record(group);
  }

  drop({ name }: GroupSpec, node: string, generation: number): void {
    const cluster = this.#options.cluster();
    const member = liveMember(cluster, node);
    if (member === undefined) return;
    cluster?.send(member.id, { kind: 'dropReplica', body: { name, generation } });
  }

  /** Throws ERR_NO_CLUSTER, ERR_NO_NODE and ERR_STATE where no replica can be. */
  check(to: string): void {
    if (to !== 'self') this.#memberCalled(to);
  }

  #cluster(): ClusterNode {
    const cluster = this.#options.cluster();
    if (cluster !== undefined) return cluster;
    throw new ReplicationError('ERR_NO_CLUSTER', 'this node is in no cluster', {
      advice: 'replpage init makes one, replpage join TOKEN@HOST enters one',
    });
  }

  #memberCalled(name: string): Member {
    const cluster = this.#cluster();
    const member = liveMember(cluster, name);
    if (member === undefined) {
      throw new ReplicationError('ERR_NO_NODE', `there is no node ${name} in the cluster`, {
        advice: 'replpage nodes shows those there are',
      });
    }
    if (member.id === cluster.self.id) {
      throw new ReplicationError('ERR_BAD_REQUEST', `node ${name} is this one`, {
        advice: 'without --to the replica is kept here',
      });
    }
    return member;
  }

  async #ship(
    cluster: ClusterNode,
    member: Member,
    group: { readonly name: string; readonly generation: number },
    files: readonly RequiredFile[],
    wants: readonly number[],
  ): Promise<readonly ShippedFile[]> {
    const shipped: ShippedFile[] = [];
    for (const file of wants) {
      const wanted = files[file];
      if (wanted === undefined) throw new Error(`node ${member.name} wants what is not used`);
      const sha256 = await sendFile(wanted, group, (message) =>
        this.#options.requests.ask(cluster, member, 'fileTaken', answerMs, message),
      );
      shipped.push({ file, sha256 });
    }
    const paths = new Set(wants.flatMap((file) => files[file]?.path ?? []));
    for (const each of paths) {
      this.#options.host.note(group.name, 'file shipped', `${each} to node ${member.name}`);
    }
    return shipped;
  }

  onMessage(member: Member, message: ReplicaMessage): void {
    const cluster = this.#options.cluster();
    if (cluster === undefined) return;
    if (isAnswer(message)) return this.#options.requests.heard(member, message);
    if (message.kind === 'askRecord') {
      const record = this.#options.records.of(message.body.name);
      const body = { request: message.body.request, records: record === undefined ? [] : [record] };
      return void cluster.send(member.id, { kind: 'recordTold', body });
    }
    if (message.kind !== 'replicaRecords') {
      return this.#options.kept.onMessage(cluster, member, message);
    }
    const { request, records } = message.body;
    void this.#options.records.heard(member, records).then((why) => {
      this.#options.kept.dropReplaced();
      if (request === 0) return;
      cluster.send(member.id, { kind: 'recordsTaken', body: { request, why } });
    });
  }

  // ---- for users of this node

  /** This node's name in its cluster. */
  get self(): string {
    return this.#options.cluster()?.self.name ?? '';
  }

  /** So many, as `to` has them: other zones first, then most memory. Throws ERR_NO_NODE. */
  choose(count: number): string {
    const cluster = this.#cluster();
    const left = cluster.nodes.flatMap(({ member, reach, facts }) =>
      reach === 'up' && facts !== undefined ? [{ member, facts }] : [],
    );
    const zones = new Set([cluster.self.zone]);
    const chosen: string[] = [];
    while (chosen.length < count && left.length > 0) {
      left.sort(
        (a, b) =>
          Number(zones.has(a.member.zone)) - Number(zones.has(b.member.zone)) ||
          b.facts.memoryForReplicasBytes - a.facts.memoryForReplicasBytes ||
          a.facts.groups - b.facts.groups,
      );
      const [best] = left.splice(0, 1);
      if (best === undefined) break;
      zones.add(best.member.zone);
      chosen.push(best.member.name);
    }
    if (chosen.length === count) return chosen.join(',');
    throw new ReplicationError('ERR_NO_NODE', `there are only ${chosen.length} other nodes up`, {
      advice: 'replpage nodes shows those there are',
    });
  }

  /** Other nodes that can be reached. */
  get targets(): readonly MoveTarget[] {
    const views = this.#options.cluster()?.nodes ?? [];
    return views.flatMap(({ member, reach, facts }) =>
      reach !== 'up' || facts === undefined
        ? []
        : [{ name: member.name, memoryForReplicasBytes: facts.memoryForReplicasBytes }],
    );
  }
}

function liveMember(cluster: ClusterNode | undefined, name: string): Member | undefined {
  return cluster?.nodes.find(({ member }) => !member.removed && member.name === name)?.member;
}
