/**
 * The cluster as the API sees it: makes one, joins one, lets nodes in and removes them. Without one,
 * which is how every node begins, nothing listens on the network.
 */
import { hostname } from 'node:os';
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import type { ClusterControl } from '../api/cluster-routes.js';
import {
  clusterDefaults,
  type InitReport,
  type InitRequest,
  type JoinClusterRequest,
  type JoinReport,
  type KeyImportReport,
  type KeyImportRequest,
  type NodesReport,
  type NodeStatus,
  type TokenReport,
  type TokenRequest,
} from '../api/cluster-schema.js';
import type { Caller } from '../api/server.js';
import { describe, ReplicationError } from '../base/errors.js';
import { parseToken } from '../format/join-token.js';
import { nodeNamePattern, protocolVersion, type Member } from '../format/peer-messages.js';
import { formatRecoveryKey, parseKey } from '../format/recovery-key.js';
import { isAwaited } from '../membership/admission.js';
import { readCluster, writeCluster, type ClusterRecord } from '../membership/cluster-file.js';
import { ClusterNode, type NodeHost } from '../membership/cluster-node.js';
import type { NodeView } from '../membership/membership.js';
import { makeStoreKey, readStoreKey } from '../membership/store-key-file.js';
import { makeAuthority, makeKeyPair, makeRequest, sign } from '../transport/certificates.js';
import { askToJoin, whyNotJoined } from '../transport/join.js';
import { formatAddress } from '../transport/peer-tls.js';
import { checkOwn } from '../membership/renewal.js';
import { checkListen, givenAddress, listenAddress, ownAddress } from './own-address.js';

export interface ClusterOptions extends NodeHost {
  readonly stateDir: string;
}

export class Cluster implements ClusterControl {
  readonly #options: ClusterOptions;
  readonly #path: string;
  #node: ClusterNode | undefined;
  /** Why there is none though there should be. */
  #unread: ReplicationError | undefined;
  /** One init or join at a time. */
  #entering = false;

  constructor(options: ClusterOptions) {
    this.#options = options;
    this.#path = join(options.stateDir, 'cluster.json');
  }

  /** This node as a member; undefined: it is in no cluster. */
  get node(): ClusterNode | undefined {
    return this.#node;
  }

  get warnings(): readonly string[] {
    if (this.#unread !== undefined) return [describe(this.#unread)];
    return this.#node?.warnings ?? [];
  }

  /** Takes up the cluster that the node was in; a file that cannot be read is told, and left alone. */
  async start(): Promise<void> {
    try {
      const record = await readCluster(this.#path);
      if (record !== undefined) await this.#enter(record);
    } catch (error) {
      if (!(error instanceof ReplicationError)) throw error;
      this.#unread = error;
      this.#options.log.error({ reason: describe(error) }, 'the node is without its cluster');
    }
  }

  async stop(): Promise<void> {
    await this.#node?.stop();
  }

  init(caller: Caller, request: InitRequest): Promise<InitReport> {
    forRoot(caller);
    return this.#alone(() => this.#init(request));
  }

  join(caller: Caller, request: JoinClusterRequest): Promise<JoinReport> {
    forRoot(caller);
    return this.#alone(() => this.#join(request));
  }

  token(caller: Caller, request: TokenRequest): TokenReport {
    forRoot(caller);
    const ttlMs = request.ttlMs ?? clusterDefaults.ttlMs;
    const node = this.#member();
    const token = node.makeToken(ttlMs, request.signs === true);
    return { token, address: node.self.address, ttlMs };
  }

  async removeNode(caller: Caller, name: string): Promise<NodesReport> {
    forRoot(caller);
    await this.#member().remove(name);
    return this.nodes();
  }

  nodes(): NodesReport {
    const node = this.#member();
    return {
      cluster: node.record.cluster,
      node: node.self.name,
      certificateUntil: new Date(node.certificateUntilMs).toISOString(),
      nodes: node.nodes.map(nodeStatus),
      warnings: node.warnings,
    };
  }

  async importKey(caller: Caller, { key }: KeyImportRequest): Promise<KeyImportReport> {
    forRoot(caller);
    return { imported: await this.#takeKey(readKey('the key', key)) };
  }

  #member(): ClusterNode {
    if (this.#unread !== undefined) throw this.#unread;
    if (this.#node !== undefined) return this.#node;
    throw new ReplicationError('ERR_NO_CLUSTER', 'this node is in no cluster', {
      advice: 'replpage init makes one, replpage join TOKEN@HOST enters one',
    });
  }

  async #alone<T>(work: () => Promise<T>): Promise<T> {
    if (this.#unread !== undefined) throw this.#unread;
    if (this.#node !== undefined) {
      const { cluster } = this.#node.record;
      const message = `this node is ${this.#node.self.name} of cluster ${cluster} already`;
      throw new ReplicationError('ERR_IN_CLUSTER', message, {
        advice: `to leave it: remove the node on another, end the daemon, move ${this.#path} away`,
      });
    }
    if (this.#entering)
      throw new ReplicationError('ERR_STATE', 'another init or join is under way');
    this.#entering = true;
    try {
      return await work();
    } finally {
      this.#entering = false;
    }
  }

  async #init(request: InitRequest): Promise<InitReport> {
    const { clock, storeKeyPath } = this.#options;
    await checkListen(request.listen);
    const listen = listenAddress(request.listen, ownAddress());
    const name = nodeName(request.name);
    if (request.recover !== undefined) await this.#takeKey(readKey('--recover', request.recover));
    const storeKey = (await readStoreKey(storeKeyPath)) ?? (await makeStoreKey(storeKeyPath));
    const cluster = randomBytes(8).toString('hex');
    const nowMs = clock.wall().getTime();
    const authority = await makeAuthority(cluster, nowMs);
    const self: Member = {
      ...{ id: randomBytes(8).toString('hex'), name, address: formatAddress(listen) },
      ...{ zone: request.zone ?? null, signs: true, revision: 1, removed: false },
    };
    const lifeMs = request.certificateLifeMs ?? clusterDefaults.certificateLifeMs;
    const pair = await makeKeyPair();
    const identity = { cluster, id: self.id, name };
    const asked = await makeRequest(pair);
    const certificate = await sign(authority, identity, asked, { nowMs, lifeMs });
    const record: ClusterRecord = {
      ...{ cluster, self: self.id, certificate, privateKey: pair.privateKey },
      ...{ ca: authority.certificate, caKey: authority.privateKey, certificateLifeMs: lifeMs },
      members: [self],
    };
    await this.#record(record);
    const node = await this.#enter(record);
    return { cluster, node: ownStatus(node), recoveryKey: formatRecoveryKey(storeKey) };
  }

  async #join(request: JoinClusterRequest): Promise<JoinReport> {
    const { clock, storeKeyPath, version } = this.#options;
    const token = readToken(request.token);
    const there = givenAddress('the address after @', request.address, clusterDefaults.port);
    await checkListen(request.listen);
    const name = nodeName(request.name);
    const key = await readStoreKey(storeKeyPath);
    if (key !== undefined) throw ownKey(storeKeyPath);
    const pair = await makeKeyPair();
    const asked = await makeRequest(pair);
    const answer = await askToJoin({
      ...{ token, address: there, nowMs: clock.wall().getTime() },
      ask: (local) => ({
        ...{ name, zone: request.zone ?? null, protocol: protocolVersion, version },
        address: formatAddress(listenAddress(request.listen, local)),
        request: asked,
      }),
    }).catch((error: unknown) => {
      const from = `${formatAddress(there)}`;
      throw new ReplicationError('ERR_JOIN', `cannot join at ${from}: ${whyNotJoined(error)}`, {
        advice: 'see the address; a new token is made with: replpage token',
      });
    });
    const { cluster, member, certificate, ca, caKey, certificateLifeMs } = answer;
    const nowMs = clock.wall().getTime();
    checkOwn(certificate, pair.privateKey, { certificate, ca }, nowMs);
    const self = { ...member, revision: member.revision + 1 };
    const others = answer.members.filter(({ id }) => id !== member.id);
    const record: ClusterRecord = {
      ...{ cluster, self: self.id, certificate, privateKey: pair.privateKey, ca, caKey },
      certificateLifeMs,
      members: [...others, self].sort((a, b) => (a.id < b.id ? -1 : 1)),
    };
    await makeStoreKey(storeKeyPath, Buffer.from(answer.storeKey, 'base64'));
    await this.#record(record);
    const node = await this.#enter(record);
    return { cluster, node: ownStatus(node), nodes: node.nodes.length };
  }

  /** Before anything of it is used. */
  async #record(record: ClusterRecord): Promise<void> {
    try {
      await writeCluster(this.#path, record);
    } catch (error) {
      throw new ReplicationError(
        'ERR_STATE_FILE',
        `cannot record the cluster: ${describe(error)}`,
        {
          advice: `see the disk under ${this.#path}, and try again`,
        },
      );
    }
  }

  async #enter(record: ClusterRecord): Promise<ClusterNode> {
    const { storeKeyPath, version, clock, log } = this.#options;
    const node = new ClusterNode(record, {
      ...{ path: this.#path, storeKeyPath, version, clock },
      log: log.child({ component: 'membership' }),
      facts: () => this.#options.facts(),
      note: (name, what, why) => this.#options.note(name, what, why),
      onReplicaMessage: (member, message) => this.#options.onReplicaMessage?.(member, message),
    });
    this.#node = node;
    await node.start();
    return node;
  }

  /** False when that very key is there. Throws ERR_STATE when another one is. */
  async #takeKey(key: Buffer): Promise<boolean> {
    const { storeKeyPath } = this.#options;
    const before = await readStoreKey(storeKeyPath);
    const after = before ?? (await makeStoreKey(storeKeyPath, key));
    if (after.equals(key)) return before === undefined;
    throw ownKey(storeKeyPath);
  }
}

function forRoot({ uid }: Caller): void {
  if (uid === 0) return;
  throw new ReplicationError('ERR_DENIED', `user ${uid} may not change the cluster`, {
    advice: 'whoever may, has the memory of every protected process: ask root',
  });
}

function ownKey(path: string): ReplicationError {
  return new ReplicationError('ERR_STATE', 'this node has another key of its page stores already', {
    advice:
      `what was sealed with it could not be read any more; if that does not matter: ` +
      `replpage key export FILE, move ${path} away, and try again`,
  });
}

function readKey(what: string, text: string): Buffer {
  try {
    return parseKey(text);
  } catch (error) {
    throw new ReplicationError('ERR_USAGE', `${what} is not right: ${describe(error)}`, {
      advice: 'type it as init or key export printed it; dashes do not matter',
    });
  }
}

function readToken(text: string) {
  try {
    return parseToken(text);
  } catch (error) {
    throw new ReplicationError('ERR_USAGE', `the token is not right: ${describe(error)}`, {
      advice: 'copy all of it, as replpage token printed it',
    });
  }
}

function nodeName(given: string | undefined): string {
  const name = given ?? hostname();
  if (nodeNamePattern.test(name)) return name;
  throw new ReplicationError('ERR_USAGE', `"${name}" is no name for a node`, {
    advice: 'give one with --name: up to 63 letters, digits, dots, dashes or underscores',
  });
}

function nodeStatus({ member, reach, facts, roundTripUs, trouble }: NodeView): NodeStatus {
  const { name, id, address, zone, signs } = member;
  const awaited = isAwaited(member) && reach === 'unreachable';
  return {
    ...{ name, id, address, zone, signs, state: awaited ? 'awaited' : reach },
    reason: reach === 'unreachable' ? (trouble ?? null) : null,
    version: facts?.version ?? null,
    kernel: facts?.kernel ?? null,
    roundTripUs: roundTripUs ?? null,
    memoryBytes: facts?.memoryBytes ?? null,
    memoryForReplicasBytes: facts?.memoryForReplicasBytes ?? null,
    groups: facts?.groups ?? null,
  };
}

function ownStatus(node: ClusterNode): NodeStatus {
  const own = node.nodes.find(({ member }) => member.id === node.record.self);
  if (own === undefined) throw new ReplicationError('ERR_STATE_FILE', 'the node is no member');
  return nodeStatus(own);
}
