/**
 * Replicas that this node keeps for groups of other nodes. Who keeps what is agreed on over the nodes'
 * control connections; pages go over one connection of native threads for each replica.
 */
import { join } from 'node:path';
import type { StandbyStatus } from '../api/schema.js';
import { describe, hasCode, ReplicationError } from '../base/errors.js';
import type { Log } from '../base/log.js';
import type { GroupHost, GroupSpec } from '../capture/group-spec.js';
import type { Member, PrepareReplica, ReplicaMessage } from '../format/peer-messages.js';
import type { ClusterNode } from '../membership/cluster-node.js';
import type { NativeAddon } from '../native/binding.js';
import type { NativeStandby } from '../native/standby.js';
import { Standbys, type PromotedStandby, type Standby } from '../replica/standbys.js';
import { parseAddress } from '../transport/peer-tls.js';
import type { Credentials } from '../transport/credentials.js';
import type { DaemonConfig } from './config.js';
import { defaultOutput } from './new-spec.js';
import { checkNode } from './node-check.js';
import { makeOutputFile } from './outsiders.js';
import type { Answer, PeerRequests } from './peer-requests.js';
import type { ReplicaRecords } from './replica-records.js';
import { ShippedForReplicas } from './shipped-for-replicas.js';

export interface KeptReplicasOptions {
  readonly config: DaemonConfig;
  readonly native: NativeAddon;
  readonly log: Log;
  readonly host: Pick<GroupHost, 'clock' | 'note' | 'limits' | 'paths'>;
  readonly requests: PeerRequests;
  readonly records: ReplicaRecords;
  /** undefined: in no cluster. */
  cluster(): ClusterNode | undefined;
  /** Whether a process of that group runs here. */
  runsHere(name: string): boolean;
  promoted(promoted: PromotedStandby<GroupSpec>): void;
}

/** What other nodes ask of those that keep replicas for them. */
export type AskedOfReplicas = Exclude<
  ReplicaMessage,
  Answer | { kind: 'replicaRecords' | 'askRecord' }
>;

/** For a question whose answer may as well not come. */
const stateMs = 3000;

export class KeptReplicas {
  readonly #options: KeptReplicasOptions;
  readonly #standbys: Standbys<GroupSpec>;
  readonly #shipped: ShippedForReplicas;
  #native: NativeStandby | undefined;
  /** Which the native side has. */
  #credentials: Credentials | undefined;

  constructor(options: KeptReplicasOptions) {
    this.#options = options;
    this.#standbys = new Standbys<GroupSpec>({
      clock: options.host.clock,
      // What is tried out is told of where that was asked for.
      note: (group, what, why) => {
        if (!group.startsWith('_')) options.host.note(group, what, why);
      },
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

  // ---- for other nodes

  onMessage(cluster: ClusterNode, member: Member, message: AskedOfReplicas): void {
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
    // What was promoted elsewhere is of a higher generation, and has its replicas made anew.
    if (keeper && keeper.node.id !== member.id && keeper.generation >= generation) {
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
        drill: spec.drill === true,
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

  has(name: string): boolean {
    return this.#standbys.of(name) !== undefined;
  }

  ownerOf(name: string): number | undefined {
    return this.#standbys.of(name)?.spec.owner.uid;
  }

  status(): readonly StandbyStatus[] {
    const nowMs = this.#options.host.clock.nowMs();
    return this.#standbys.all
      .filter(({ name, state }) => state !== 'expected' && !name.startsWith('_'))
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
    if (!force) await this.#checkInSync(standby);
    const why = force ? undefined : await this.#whyItMayRun(standby);
    if (why !== undefined) {
      const from = standby.node.name;
      throw new ReplicationError('ERR_STATE', `cannot promote ${name}: node ${from} ${why}`, {
        advice:
          `to move it, on ${from}: replpage promote ${name} --to NODE; with --force it is promoted ` +
          'all the same, and two of them run where the other is not stopped',
      });
    }
    const takeBack = await this.#options.records.claim(name);
    try {
      await this.#standbys.promote(name, force || standby.spec.files === 'keep');
    } catch (error) {
      await takeBack();
      throw error;
    }
  }

  /** Those that newer ones on other nodes have taken the place of. */
  dropReplaced(): void {
    const self = this.#options.cluster()?.self.name;
    if (self === undefined) return;
    for (const { name, generation, state, spec } of this.#standbys.all) {
      const record = this.#options.records.of(name);
      const replaced =
        record?.id === spec.storeId &&
        record.generation > generation &&
        record.inSync.some((node) => node !== record.node && node !== self);
      if (replaced && state === 'cut off') this.#standbys.dropBelow(name, record.generation);
    }
  }

  /** As its primary's node had it recorded last. Throws ERR_STATE. */
  async #checkInSync({ name, generation, spec, epoch, node }: Standby<GroupSpec>): Promise<void> {
    const { record, silent } = await this.#options.records.newest(name, node.name);
    const self = this.#options.cluster()?.self.name ?? '';
    if (record === undefined || record.generation < generation) return;
    const same = record.id === spec.storeId && record.generation === generation;
    if (same && record.inSync.includes(self)) return checkHeard(name, silent);
    const claimed = record.node !== node.name;
    const why = same
      ? claimed
        ? `node ${record.node} was told to run it`
        : `it was left behind at epoch ${epoch}`
      : `it is of generation ${generation}, and ${record.generation} runs, or ran, on node ${record.node}`;
    const others = record.inSync.filter((node) => node !== record.node);
    throw new ReplicationError(
      'ERR_STATE',
      `cannot promote ${name}: its replica is not in sync: ${why}`,
      {
        advice:
          (others.length > 0
            ? `in sync is the one on node ${others.join(', ')}: type it there; `
            : '') + 'with --force the older state is promoted',
      },
    );
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
      const { running } = await this.#options.requests.ask(
        cluster,
        of,
        'primaryState',
        stateMs,
        ask,
      );
      return running ? runs : undefined;
    } catch {
      return 'is up and does not say whether it runs there: try again in some seconds';
    }
  }
}

/** Who is cut off from the others cannot know whether it was left behind. */
function checkHeard(name: string, silent: readonly string[]): void {
  if (silent.length === 0) return;
  const message = `cannot promote ${name}: node ${silent.join(', ')}, which may have a newer replica, cannot be asked`;
  throw new ReplicationError('ERR_STATE', message, {
    advice:
      'see with replpage nodes who is reachable, and whether it runs elsewhere; with --force it is ' +
      'promoted all the same, and two of them may run',
  });
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
