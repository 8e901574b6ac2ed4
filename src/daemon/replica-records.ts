/**
 * Which replicas of which groups may be promoted, as their primaries' nodes have said: the same
 * record on every node of the cluster, so that it outlives the primary's. A primary leaves a replica
 * out only when those that stay in have recorded that, so whoever holds one of them knows.
 */
import { replaceFile, readWhole } from '../base/durable-file.js';
import { describe, hasCode } from '../base/errors.js';
import type { Log } from '../base/log.js';
import type { InSync } from '../capture/group-spec.js';
import { formatChecked, parseChecked } from '../format/checked-file.js';
import {
  recordsShape,
  replicaRecordsMax,
  type Member,
  type ReplicaMessage,
  type ReplicaRecord,
} from '../format/peer-messages.js';
import type { ClusterNode } from '../membership/cluster-node.js';
import type { PeerRequests } from './peer-requests.js';

export interface ReplicaRecordsOptions {
  readonly path: string;
  readonly log: Log;
  readonly requests: PeerRequests;
  cluster(): ClusterNode | undefined;
}

const version = 1;
const kind = { mark: 'replpage-replicas', version } as const;
const fileBytesMax = 16 * 1024 * 1024;
const answerMs = 2000;
/** For a node whose replica goes on: as long as it is in sync it will answer. */
const triesMax = 5;
/** In one message. */
const batch = 200;

export class ReplicaRecords {
  readonly #options: ReplicaRecordsOptions;
  readonly #all = new Map<string, ReplicaRecord>();
  #written: Promise<void> = Promise.resolve();
  /** Of nodes that were not away since: which record of each group they are known to have. */
  readonly #known = new Map<string, Map<string, string>>();
  #trouble = '';

  constructor(options: ReplicaRecordsOptions) {
    this.#options = options;
  }

  /** Takes up what was known before. A damaged file is told of, and counts as none. */
  async start(): Promise<void> {
    const { path, log } = this.#options;
    try {
      const known = recordsShape(
        parseChecked(kind, await readWhole(path, fileBytesMax)),
        'records',
      );
      for (const record of known) this.#all.set(record.name, record);
    } catch (error) {
      if (hasCode(error, 'ENOENT')) return;
      log.error({ path, reason: describe(error) }, 'what is known of replicas cannot be read');
    }
  }

  /** undefined: none, or it is over. */
  of(name: string): ReplicaRecord | undefined {
    const record = this.#all.get(name);
    return record?.over === true ? undefined : record;
  }

  /** With those that are over. */
  get all(): readonly ReplicaRecord[] {
    return [...this.#all.values()];
  }

  /** Of a group of this node. Resolves to those of the nodes in sync that do not have it in time. */
  async record({ name, id, generation, inSync }: InSync): Promise<readonly string[]> {
    const cluster = this.#options.cluster();
    if (cluster === undefined) return [];
    const before = this.#all.get(name);
    const same = before?.id === id;
    const protection = (before?.protection ?? 0) + (same ? 0 : 1);
    return this.#say(cluster, {
      ...{ name, id, generation, protection, node: cluster.self.name, over: false },
      revision: same && before.generation === generation ? before.revision + 1 : 1,
      inSync: inSync.map((node) => (node === 'self' ? cluster.self.name : node)),
    });
  }

  /**
   * A replica that is kept here is going to be promoted: no other one may be. Gives what takes that
   * back. Without a record, as of an older node's group, there is nothing to say.
   */
  async claim(name: string): Promise<() => Promise<void>> {
    const cluster = this.#options.cluster();
    const before = this.of(name);
    if (cluster === undefined || before === undefined) return () => Promise.resolve();
    const claim = { ...before, revision: before.revision + 1, node: cluster.self.name, inSync: [] };
    // The primary's node is the one that has gone.
    const others = before.inSync.filter((node) => node !== before.node);
    await this.#say(cluster, claim, others);
    return async () => {
      const inSync = before.inSync.filter((node) => node !== cluster.self.name);
      await this.#say(cluster, { ...claim, revision: claim.revision + 1, inSync });
    };
  }

  /** Surely to those that it concerns, to the others as well as can be. */
  async #say(
    cluster: ClusterNode,
    record: ReplicaRecord,
    concerned = record.inSync,
  ): Promise<readonly string[]> {
    await this.#keep(record);
    const silent: string[] = [];
    const sure: Promise<void>[] = [];
    for (const { member } of cluster.nodes) {
      if (member.removed || member.id === cluster.self.id) continue;
      if (!concerned.includes(member.name)) {
        this.#tell(cluster, member, [record]);
        continue;
      }
      const told = this.#tellSurely(cluster, member, record);
      sure.push(told.then((taken) => void (taken || silent.push(member.name))));
    }
    await Promise.all(sure);
    return silent;
  }

  /**
   * What all nodes that can be asked know of it, and which of those that it may be in sync on, beside
   * `primary`, cannot be asked: they may know better.
   */
  async newest(
    name: string,
    primary: string,
  ): Promise<{ readonly record: ReplicaRecord | undefined; readonly silent: readonly string[] }> {
    const cluster = this.#options.cluster();
    if (cluster === undefined) return { record: this.of(name), silent: [] };
    const answered = new Set([primary, cluster.self.name]);
    const ask = (request: number): ReplicaMessage => ({
      kind: 'askRecord',
      body: { request, name },
    });
    const up = cluster.nodes.filter(({ reach }) => reach === 'up');
    await Promise.all(
      up.map(async ({ member }) => {
        const { requests } = this.#options;
        const told = await requests
          .ask(cluster, member, 'recordTold', answerMs, ask)
          .catch(() => undefined);
        if (told === undefined) return;
        answered.add(member.name);
        await this.heard(member, told.records);
      }),
    );
    const record = this.of(name);
    return { record, silent: record?.inSync.filter((node) => !answered.has(node)) ?? [] };
  }

  /** The group is over, or has no replicas any more. */
  forget(name: string): void {
    const record = this.of(name);
    const cluster = this.#options.cluster();
    if (record === undefined || cluster?.self.name !== record.node) return;
    const over = { ...record, revision: record.revision + 1, inSync: [], over: true };
    void this.#say(cluster, over);
  }

  /** Why one of them is not taken; null: all are, or were known. */
  async heard(member: Member, records: readonly ReplicaRecord[]): Promise<string | null> {
    const self = this.#options.cluster()?.self.name;
    let why: string | null = null;
    for (const record of records) {
      this.#known.get(member.id)?.set(record.name, stampOf(record));
      const known = this.#all.get(record.name);
      if (record.node === self) {
        await this.#outdate(record, known);
      } else if (known === undefined || isNewer(record, known)) await this.#keep(record);
      else if (stampOf(record) !== stampOf(known))
        why = `a newer record of ${record.name} is known`;
    }
    return this.#trouble === '' ? why : this.#trouble;
  }

  /**
   * Nobody knows better than this node what it has said; but where its file was lost, what it says
   * from now on must count for more than what others remember.
   */
  async #outdate(said: ReplicaRecord, known: ReplicaRecord | undefined): Promise<void> {
    if (known === undefined) return this.#keep({ ...said, inSync: [], over: true });
    if (!isNewer(said, known)) return;
    await this.#keep({ ...known, protection: said.protection + 1 });
  }

  /**
   * Call it now and then. Whoever was away hears everything; what is new is passed on by those that
   * it concerns, since a message of the primary's node may have been lost with its connection.
   */
  tick(): void {
    const cluster = this.#options.cluster();
    if (cluster === undefined) return;
    const up = cluster.nodes.filter(({ reach }) => reach === 'up').map(({ member }) => member);
    for (const id of this.#known.keys()) {
      if (!up.some((member) => member.id === id)) this.#known.delete(id);
    }
    const { name } = cluster.self;
    for (const member of up) {
      const known = this.#known.get(member.id);
      const told = known ?? new Map<string, string>();
      this.#known.set(member.id, told);
      const concerned = ({ node, inSync }: ReplicaRecord) => node === name || inSync.includes(name);
      const fresh = this.all.filter(
        (record) =>
          (known === undefined || concerned(record)) && told.get(record.name) !== stampOf(record),
      );
      for (let at = 0; at < fresh.length; at += batch) {
        this.#tell(cluster, member, fresh.slice(at, at + batch));
      }
      for (const record of fresh) told.set(record.name, stampOf(record));
    }
  }

  #tell(cluster: ClusterNode, member: Member, records: readonly ReplicaRecord[]): void {
    cluster.send(member.id, { kind: 'replicaRecords', body: { request: 0, records } });
  }

  /** False: it does not have it. */
  async #tellSurely(cluster: ClusterNode, member: Member, record: ReplicaRecord): Promise<boolean> {
    const ask = (request: number): ReplicaMessage => ({
      kind: 'replicaRecords',
      body: { request, records: [record] },
    });
    let why = '';
    for (let tries = 0; tries < triesMax; tries++) {
      // What is newer says it as well.
      if (this.#all.get(record.name)?.revision !== record.revision) return true;
      try {
        const { requests } = this.#options;
        const taken = await requests.ask(cluster, member, 'recordsTaken', answerMs, ask);
        if (taken.why === null) return true;
        why = taken.why;
        break;
      } catch (error) {
        why = describe(error);
        await new Promise((resolve) => setTimeout(resolve, answerMs / 4));
      }
    }
    const reason = `node ${member.name} has not recorded who of ${record.name} is in sync: ${why}`;
    this.#options.log.warn({ group: record.name, node: member.name }, reason);
    return false;
  }

  #keep(record: ReplicaRecord): Promise<void> {
    this.#all.delete(record.name);
    this.#all.set(record.name, record); // the last that changed comes last
    if (this.#all.size > replicaRecordsMax) this.#forgetOldest();
    return this.#write();
  }

  /** Of those that are over. */
  #forgetOldest(): void {
    const oldest = this.all.find(({ over }) => over);
    if (oldest !== undefined) this.#all.delete(oldest.name);
  }

  #write(): Promise<void> {
    this.#written = this.#written.then(async () => {
      const { path, log } = this.#options;
      try {
        await replaceFile(path, formatChecked(kind, this.all), 0o600);
        this.#trouble = '';
      } catch (error) {
        this.#trouble = `cannot write ${path}: ${describe(error)}`;
        log.error({ path, reason: describe(error) }, 'what is known of replicas is not written');
      }
    });
    return this.#written;
  }
}

const stampOf = ({ protection, generation, revision }: ReplicaRecord): string =>
  `${protection} ${generation} ${revision}`;

function isNewer(record: ReplicaRecord, known: ReplicaRecord): boolean {
  if (record.protection !== known.protection) return record.protection > known.protection;
  if (record.generation !== known.generation) return record.generation > known.generation;
  return record.revision > known.revision;
}
