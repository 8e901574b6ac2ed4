/**
 * Replicas on other nodes, both ways: has one kept elsewhere for a group of this node, and keeps
 * those of others. Who keeps what is agreed on over the nodes' control connections; pages go over
 * one connection of native threads for each replica.
 */
import { join } from 'node:path';
import type { StandbyStatus } from '../api/schema.js';
import { describe, hasCode, ReplicationError } from '../base/errors.js';
import type { Log } from '../base/log.js';
import type { GroupHost, GroupSpec, PeerPlaces } from '../capture/group-spec.js';
import type {
  Member,
  PrepareReplica,
  ReplicaMessage,
  ShippedFile,
} from '../format/peer-messages.js';
import type { ClusterNode } from '../membership/cluster-node.js';
import type { NativeAddon } from '../native/binding.js';
import type { RequiredFile } from '../native/requirements.js';
import type { NativePlace, NativeStandby } from '../native/standby.js';
import { sendFile } from '../replica/file-sender.js';
import { Standbys, type PromotedStandby, type Standby } from '../replica/standbys.js';
import { parseAddress } from '../transport/peer-tls.js';
import type { Credentials } from '../transport/credentials.js';
import type { DaemonConfig } from './config.js';
import type { MoveTarget } from './moves.js';
import { defaultOutput } from './new-spec.js';
import { checkNode, requirementsOf } from './node-check.js';
import { makeOutputFile } from './outsiders.js';
import { isAnswer, PeerRequests } from './peer-requests.js';
import { ShippedForReplicas } from './shipped-for-replicas.js';

export interface ReplicaPeersOptions {
  readonly config: DaemonConfig;
  readonly native: NativeAddon;
  readonly log: Log;
  readonly host: Pick<GroupHost, 'clock' | 'note' | 'limits' | 'paths'>;
  /** undefined: in no cluster. */
  cluster(): ClusterNode | undefined;
  /** Whether a process of that group runs here. */
  runsHere(name: string): boolean;
  promoted(promoted: PromotedStandby<GroupSpec>): void;
}

const answerMs = 30_000;
/** For a question whose answer may as well not come. */
const stateMs = 3000;

export class ReplicaPeers implements PeerPlaces {
  readonly #options: ReplicaPeersOptions;
  readonly #standbys: Standbys<GroupSpec>;
  readonly #requests = new PeerRequests();
  readonly #shipped: ShippedForReplicas;
  #native: NativeStandby | undefined;
  /** Which the native side has. */
  #credentials: Credentials | undefined;

  constructor(options: ReplicaPeersOptions) {
    this.#options = options;
    this.#standbys = new Standbys<GroupSpec>({
      clock: options.host.clock,
      note: (group, what, why) => options.host.note(group, what, why),
      promoted: (promoted) => options.promoted(promoted),
      opened: (standby, made) => void this.#shipped.made(standby, made),
      lost: () => void this.#shipped.sweep(),
    });
    this.#shipped = new ShippedForReplicas({
      folder: join(options.config.stateDir, 'shipped'),
      log: options.log,
      nowMs: () => options.host.clock.nowMs(),
      uses: (name, generation) => this.#standbys.has(name, generation),
    });
  }

  stop(): void {
    this.#native?.stop();
  }

  // ---- for groups of this node

  async place(spec: GroupSpec, hostPid: number, generation: number): Promise<NativePlace | null> {
    if (spec.to === undefined || spec.to === 'self') return null;
    const cluster = this.#cluster();
    const member = this.#memberCalled(spec.to);
    const { config } = this.#options;
    const { bytes, files } = await requirementsOf(hostPid);
    const prepare = (shipped: readonly ShippedFile[]) =>
      this.#requests.ask(cluster, member, 'replicaPrepared', answerMs, (request) => ({
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
      throw new ReplicationError('ERR_REFUSED', `node ${spec.to} keeps no replica: ${why}`);
    }
    const host = parseAddress(member.address)?.host ?? '';
    return { host, port, node: member.id, token, credentials: cluster.credentials };
  }

  end({ name, to }: GroupSpec, generation: number): void {
    if (to === undefined || to === 'self') return;
    const cluster = this.#options.cluster();
    const member = liveMember(cluster, to);
    if (member !== undefined) {
      cluster?.send(member.id, { kind: 'dropReplica', body: { name, generation } });
    }
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
        this.#requests.ask(cluster, member, 'fileTaken', answerMs, message),
      );
      shipped.push({ file, sha256 });
    }
    const paths = new Set(wants.flatMap((file) => files[file]?.path ?? []));
    for (const each of paths) {
      this.#options.host.note(group.name, 'file shipped', `${each} to node ${member.name}`);
    }
    return shipped;
  }

  // ---- for other nodes

  onMessage(member: Member, message: ReplicaMessage): void {
    const cluster = this.#options.cluster();
    if (cluster === undefined) return;
    if (isAnswer(message)) return this.#requests.heard(member, message);
    switch (message.kind) {
      case 'prepareReplica':
        return void this.#prepare(cluster, member, message.body);
      case 'dropReplica': {
        const { name, generation } = message.body;
        if (this.#standbys.drop(name, member.id, generation) > 0) {
          this.#options.host.note(name, 'replica dropped', `node ${member.name} has said so`);
        }
        return;
      }
      case 'askPrimary': {
        const { request, name } = message.body;
        const running = this.#options.runsHere(name);
        return void cluster.send(member.id, { kind: 'primaryState', body: { request, running } });
      }
      case 'shipFile':
      case 'shipChunk':
        return void this.#shipped
          .take(member.id, message)
          .then((body) => cluster.send(member.id, { kind: 'fileTaken', body }));
    }
  }

  async #prepare(cluster: ClusterNode, member: Member, asked: PrepareReplica): Promise<void> {
    const { request, name } = asked;
    const none: readonly number[] = [];
    let body = { request, refusal: null as string | null, port: 0, token: '', wants: none };
    try {
      body = { ...body, ...(await this.#expect(cluster, member, asked)) };
    } catch (error) {
      body.refusal = describe(error).slice(0, 900);
      this.#options.log.warn({ group: name, node: member.name, reason: body.refusal }, 'refused');
    }
    cluster.send(member.id, { kind: 'replicaPrepared', body });
  }

  async #expect(
    cluster: ClusterNode,
    member: Member,
    asked: PrepareReplica,
  ): Promise<{ readonly port: number; readonly token: string; readonly wants: readonly number[] }> {
    const { name, generation, spec: text, ownOutput } = asked;
    if (this.#options.runsHere(name)) throw new Error(`a group ${name} runs here`);
    const keeper = this.#standbys.of(name);
    if (keeper !== undefined && keeper.node.id !== member.id) {
      throw new Error(`a replica of ${name} of node ${keeper.node.name} is kept here`);
    }
    const spec = parseSpec(text);
    const { config, host } = this.#options;
    const stdio = ownOutput ? defaultOutput(config.logDir, name) : spec.stdio;
    if (ownOutput) await makeOutputFile(config.logDir, name, spec.owner);
    const shipFiles = spec.shipFiles === 'mapped';
    const { wants, peerFiles, hashes } = await checkNode(asked, {
      keepFiles: spec.files === 'keep',
      shipFiles,
      // The output that the daemon there made has one of its own here.
      except: ownOutput ? spec.stdio : null,
      pathOf: shipFiles ? await this.#shipped.places() : () => undefined,
    });
    if (wants.length > 0) return { port: 0, token: '', wants };
    const native = this.#listener(cluster);
    const { uid, gid, groups } = spec.owner;
    const { stagingBytesMax, spillBytesMax } = host.limits;
    const token = await this.#shipped.keep(name, generation, hashes, () =>
      this.#standbys.expect(native, member, spec, {
        ...{ name, generation, ...host.paths, stdio, uid, gid, groups, files: spec.files },
        ...{ vip: spec.vip ?? null, stagingBytesMax, spillBytesMax, peerFiles },
      }),
    );
    return { port: native.port(), token, wants };
  }

  /** Listens from the first replica on. */
  #listener(cluster: ClusterNode): NativeStandby {
    const { credentials } = cluster;
    if (this.#native === undefined) {
      this.#native = this.#listen(cluster);
      this.#standbys.use(this.#native);
    } else if (credentials !== this.#credentials) {
      this.#native.renew(credentials);
    }
    this.#credentials = credentials;
    return this.#native;
  }

  #listen({ self, credentials }: ClusterNode): NativeStandby {
    const { NativeStandby: Native } = this.#options.native;
    const { host, port } = parseAddress(self.address) ?? { host: '', port: 0 };
    const on = (at: number): NativeStandby =>
      new Native({ host, port: at, credentials }, (event) => this.#standbys.heard(event));
    try {
      return on(port + 1);
    } catch (error) {
      // Another one does as well where nothing stands between the nodes.
      if (!hasCode(error, 'EADDRINUSE')) throw error;
      return on(0);
    }
  }

  // ---- for users of this node

  /** This node's name in its cluster. */
  get self(): string {
    return this.#options.cluster()?.self.name ?? '';
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

  has(name: string): boolean {
    return this.#standbys.of(name) !== undefined;
  }

  ownerOf(name: string): number | undefined {
    return this.#standbys.of(name)?.spec.owner.uid;
  }

  status(): readonly StandbyStatus[] {
    const nowMs = this.#options.host.clock.nowMs();
    return this.#standbys.all
      .filter(({ state }) => state !== 'expected')
      .map(({ name, node, state, epoch, generation, residentBytes, committedMs, reason }) => ({
        ...{ name, node: node.name, state, epoch, generation, residentBytes },
        lagMs: epoch === 0 ? 0 : Math.round(nowMs - committedMs),
        reason: reason ?? null,
      }));
  }

  /** Resolves when it runs here. Throws ERR_STATE while the primary may run, unless `force`. */
  async promote(name: string, force: boolean): Promise<void> {
    const standby = this.#standbys.of(name);
    if (standby === undefined) {
      throw new ReplicationError('ERR_NO_REPLICA', `no replica of ${name} is kept here`);
    }
    const why = force ? undefined : await this.#whyItMayRun(standby);
    if (why !== undefined) {
      const from = standby.node.name;
      throw new ReplicationError('ERR_STATE', `cannot promote ${name}: node ${from} ${why}`, {
        advice:
          `to move it, on ${from}: replpage promote ${name} --to NODE; with --force it is promoted ` +
          'all the same, and two of them run where the other is not stopped',
      });
    }
    await this.#standbys.promote(name, force || standby.spec.files === 'keep');
  }

  /** What is known of the node of its primary; undefined: it does not run there, or is not heard. */
  async #whyItMayRun({ name, node, state }: Standby<GroupSpec>): Promise<string | undefined> {
    const runs = 'says that it runs there';
    if (state === 'standby') return runs;
    const cluster = this.#options.cluster();
    const member = cluster?.nodes.find((other) => other.member.id === node.id);
    if (cluster === undefined || member?.reach !== 'up') return undefined;
    const ask = (request: number): ReplicaMessage => ({
      kind: 'askPrimary',
      body: { request, name },
    });
    try {
      const { member: of } = member;
      const { running } = await this.#requests.ask(cluster, of, 'primaryState', stateMs, ask);
      return running ? runs : undefined;
    } catch {
      return 'is up and does not say whether it runs there: try again in some seconds';
    }
  }
}

function liveMember(cluster: ClusterNode | undefined, name: string): Member | undefined {
  return cluster?.nodes.find(({ member }) => !member.removed && member.name === name)?.member;
}

/** Of a node that is believed; what is needed of it here is looked at all the same. */
function parseSpec(text: string): GroupSpec {
  const spec = JSON.parse(text) as Partial<GroupSpec> | null;
  const owner = spec?.owner;
  const numbers = [owner?.uid, owner?.gid, spec?.retries, ...(owner?.groups ?? [])];
  const right =
    numbers.every((number) => Number.isSafeInteger(number)) &&
    (spec?.files === 'refuse' || spec?.files === 'keep') &&
    (spec.stdio === null || typeof spec.stdio === 'string') &&
    typeof spec.name === 'string';
  if (!right) throw new Error('the options of the group are not understood');
  return spec as GroupSpec;
}
