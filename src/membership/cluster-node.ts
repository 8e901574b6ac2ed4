/** This node as a member of its cluster: connections, certificate, admission, and what is on disk. */
import type { TLSSocket } from 'node:tls';
import type { Clock } from '../base/clock.js';
import { ReplicationError } from '../base/errors.js';
import type { Log } from '../base/log.js';
import {
  isReplicaMessage,
  type Member,
  type NodeFacts,
  type PeerMessage,
  type ReplicaMessage,
} from '../format/peer-messages.js';
import type { Credentials } from '../transport/credentials.js';
import { Admission } from './admission.js';
import { authorityOf, type ClusterRecord } from './cluster-file.js';
import { ClusterRecordWriter } from './cluster-record-writer.js';
import {
  liveMembers,
  memberById,
  membersCalled,
  mergeMembers,
  type MemberList,
} from './member-list.js';
import { Membership, type NodeView } from './membership.js';
import { Renewal } from './renewal.js';
import { makeStoreKey, readStoreKey } from './store-key-file.js';

/** What a node needs of the daemon that it is in. */
export interface NodeHost {
  readonly storeKeyPath: string;
  readonly version: string;
  readonly clock: Clock;
  readonly log: Log;
  facts(): NodeFacts;
  note(node: string, what: string, why: string): void;
  /** About replicas, from another node. */
  onReplicaMessage?(member: Member, message: ReplicaMessage): void;
}

export interface ClusterNodeOptions extends NodeHost {
  readonly path: string;
  /** For tests of versions that are apart. */
  readonly protocol?: number;
}

const renewalTickMs = 1000;

export class ClusterNode {
  readonly #options: ClusterNodeOptions;
  readonly #file: ClusterRecordWriter;
  readonly #membership: Membership;
  readonly #renewal: Renewal;
  readonly #admission: Admission | undefined;
  #timer: NodeJS.Timeout | undefined;

  constructor(record: ClusterRecord, options: ClusterNodeOptions) {
    this.#options = options;
    const { clock, log, version, protocol } = options;
    this.#file = new ClusterRecordWriter(options.path, record, { clock, log });
    const self = memberById(record.members, record.self);
    if (self === undefined) throw new ReplicationError('ERR_STATE_FILE', 'the node is no member');
    this.#membership = new Membership({
      ...{ credentials: credentialsOf(record), self, members: record.members, version, clock, log },
      facts: () => options.facts(),
      persist: (members) => this.#heard(members),
      note: (node, what, why) => options.note(node, what, why),
      onMessage: (member, message) => this.#onMessage(member, message),
      onJoin: (socket) => this.#onJoin(socket),
      ...(protocol === undefined ? {} : { protocol }),
    });
    this.#renewal = this.#newRenewal(record);
    this.#admission = this.#newAdmission(record);
  }

  get record(): ClusterRecord {
    return this.#file.record;
  }

  get self(): Member {
    return this.#membership.self;
  }

  get nodes(): readonly NodeView[] {
    return this.#membership.nodes();
  }

  get credentials(): Credentials {
    return this.#membership.credentials;
  }

  /** False when there is no connection. */
  send(member: string, message: ReplicaMessage): boolean {
    return this.#membership.send(member, message);
  }

  get certificateUntilMs(): number {
    return this.#renewal.untilMs;
  }

  get warnings(): readonly string[] {
    const { health, trouble } = this.#renewal;
    const end = new Date(this.#renewal.untilMs).toISOString();
    const why = trouble === undefined ? '' : `: ${trouble}`;
    return [
      this.#membership.removed ? 'this node was removed from its cluster' : undefined,
      this.#membership.deaf,
      this.#file.trouble,
      health === 'good' ? undefined : `this node's certificate (until ${end}): ${health}${why}`,
    ].filter((warning) => warning !== undefined);
  }

  async start(): Promise<void> {
    await this.#membership.start();
    this.#timer = setInterval(() => void this.#renewal.tick(), renewalTickMs).unref();
  }

  async stop(): Promise<void> {
    clearInterval(this.#timer);
    this.#membership.stop();
    await this.#file.close();
  }

  /** Throws ERR_DENIED where the CA's key is not, and ERR_LIMIT. */
  makeToken(ttlMs: number, signs: boolean): string {
    if (this.#admission !== undefined) return this.#admission.makeToken(ttlMs, signs);
    const able = liveMembers(this.record.members).filter((member) => member.signs);
    const names = able.map(({ name }) => name).join(', ');
    throw new ReplicationError('ERR_DENIED', "this node does not hold the cluster's CA key", {
      advice: names === '' ? 'no node does any more' : `make the token on ${names}`,
    });
  }

  /** For good. Throws ERR_NO_NODE, and what the disk says when it cannot be recorded. */
  async remove(nameOrId: string): Promise<void> {
    const found = membersCalled(this.record.members, nameOrId);
    const [member] = found;
    if (member === undefined) {
      throw new ReplicationError('ERR_NO_NODE', `there is no node ${nameOrId} in the cluster`, {
        advice: 'replpage nodes shows those there are',
      });
    }
    if (found.length > 1) {
      const ids = found.map(({ id }) => id).join(', ');
      throw new ReplicationError('ERR_STATE', `there are ${found.length} nodes ${nameOrId}`, {
        advice: `say which by its id: ${ids}`,
      });
    }
    if (member.id === this.record.self) {
      throw new ReplicationError('ERR_STATE', 'a node does not remove itself', {
        advice: 'do it on another node',
      });
    }
    await this.#commit([{ ...member, removed: true }]);
  }

  async #commit(members: MemberList): Promise<void> {
    await this.#file.commit((record) => withMembers(record, members));
    this.#membership.change(members);
  }

  /** Also after a commit, which has it written already. */
  #heard(members: MemberList): void {
    const { changed } = mergeMembers(this.record.members, members);
    if (changed.length > 0) this.#file.change((record) => withMembers(record, members));
  }

  #newRenewal(record: ClusterRecord): Renewal {
    const { clock, log } = this.#options;
    return new Renewal({
      ...{ clock, log, authority: authorityOf(record), lifeMs: record.certificateLifeMs },
      credentials: () => this.#membership.credentials,
      askSigner: (request) => this.#askSigner(request),
      reply: (member, certificate) => {
        this.#membership.send(member.id, { kind: 'renewed', body: { certificate } });
      },
      use: async (credentials) => {
        await this.#file.commit((before) => ({ ...before, ...credentials }));
        this.#membership.renew(credentials);
      },
    });
  }

  #askSigner(request: string): string | undefined {
    const signer = liveMembers(this.record.members).find(
      ({ id, signs }) =>
        signs &&
        id !== this.record.self &&
        this.#membership.send(id, { kind: 'renew', body: { request } }),
    );
    return signer?.id;
  }

  #newAdmission(record: ClusterRecord): Admission | undefined {
    const authority = authorityOf(record);
    if (authority === undefined) return undefined;
    const { clock, log, storeKeyPath, protocol } = this.#options;
    return new Admission({
      ...{ cluster: record.cluster, authority, lifeMs: record.certificateLifeMs, clock, log },
      members: () => this.record.members,
      commit: (members) => this.#commit(members),
      storeKey: async () =>
        (await readStoreKey(storeKeyPath)) ?? (await makeStoreKey(storeKeyPath)),
      ...(protocol === undefined ? {} : { protocol }),
    });
  }

  #onMessage(member: Member, message: PeerMessage): void {
    if (isReplicaMessage(message)) return this.#options.onReplicaMessage?.(member, message);
    if (message.kind === 'renew') void this.#renewal.renew(member, message.body.request);
    if (message.kind !== 'renewed') return;
    // Only who may sign is listened to; what it signed is checked besides.
    if (member.signs) void this.#renewal.renewed(message.body.certificate);
  }

  #onJoin(socket: TLSSocket): void {
    if (this.#admission === undefined) socket.destroy();
    else void this.#admission.answer(socket);
  }
}

const credentialsOf = ({ cluster, certificate, privateKey, ca }: ClusterRecord): Credentials => ({
  ...{ cluster, certificate, privateKey, ca },
});

const withMembers = (record: ClusterRecord, members: MemberList): ClusterRecord => ({
  ...record,
  members: mergeMembers(record.members, members).list,
});
