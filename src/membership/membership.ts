/**
 * The shell around membership-state.ts: listens, dials, keeps the connections, and carries out what
 * the machine says. What else goes over those connections is handed to `onMessage`.
 */
import { randomBytes } from 'node:crypto';
import type { Server, TLSSocket } from 'node:tls';
import type { Clock } from '../base/clock.js';
import { describe } from '../base/errors.js';
import type { Log } from '../base/log.js';
import {
  isReplicaMessage,
  protocolVersion,
  type Hello,
  type Member,
  type NodeFacts,
  type PeerMessage,
  type Refusal,
} from '../format/peer-messages.js';
import type { Credentials } from '../transport/credentials.js';
import { greet, type Greeted } from '../transport/greeting.js';
import type { Certified } from '../transport/identity.js';
import { PeerRefusal, type PeerLink } from '../transport/peer-link.js';
import {
  dialNode,
  formatAddress,
  listenTls,
  parseAddress,
  renewServer,
  whyNot,
} from '../transport/peer-tls.js';
import { memberById, type MemberList } from './member-list.js';
import {
  isRemoved,
  newMembership,
  reachOf,
  step,
  type MembershipEffect,
  type MembershipEvent,
  type MembershipState,
  type Peer,
  type Reach,
} from './membership-state.js';

export interface MembershipOptions {
  readonly credentials: Credentials;
  readonly self: Member;
  readonly members: MemberList;
  readonly version: string;
  readonly clock: Clock;
  readonly log: Log;
  /** As it is now; asked for now and then. */
  facts(): NodeFacts;
  /** The list has changed; making it durable is the caller's part. */
  persist(members: MemberList): void;
  note(node: string, what: string, why: string): void;
  /** Anything but heartbeats, facts and lists. */
  onMessage(member: Member, message: PeerMessage): void;
  /** Somebody without a certificate. */
  onJoin(socket: TLSSocket): void;
  /** For tests of versions that are apart. */
  readonly protocol?: number;
}

export interface NodeView {
  readonly member: Member;
  readonly reach: Reach;
  readonly facts: NodeFacts | undefined;
  readonly roundTripUs: number | undefined;
  /** Why it cannot be reached. */
  readonly trouble: string | undefined;
}

const tickMs = 250;
const factsMs = 10_000;
/** A change of free memory that is worth a message to everybody: a sixty-fourth of all. */
const memoryShare = 1 / 64;
/** An address may come late, as after a boot. */
const listenAgainMs = 3000;

export class Membership {
  readonly #options: MembershipOptions;
  readonly #run = randomBytes(8).toString('hex');
  readonly #links = new Map<number, { readonly link: PeerLink; readonly member: string }>();
  #credentials: Credentials;
  #state: MembershipState;
  #server: Server | undefined;
  #lastLink = 0;
  #factsDueMs = 0;
  #timer: NodeJS.Timeout | undefined;
  #listenAgain: NodeJS.Timeout | undefined;
  #stopped = false;
  /** Why nobody can reach us. */
  #deaf: string | undefined;

  constructor(options: MembershipOptions) {
    const { self, members, clock } = options;
    this.#options = options;
    this.#credentials = options.credentials;
    this.#state = newMembership(self.id, members, options.facts(), clock.nowMs());
  }

  get members(): MemberList {
    return this.#state.members;
  }

  get self(): Member {
    return memberById(this.members, this.#state.self) ?? this.#options.self;
  }

  get removed(): boolean {
    return isRemoved(this.#state);
  }

  /** Why it does not listen; undefined when it does. */
  get deaf(): string | undefined {
    return this.#deaf;
  }

  get credentials(): Credentials {
    return this.#credentials;
  }

  /** Resolves when it listens, or it is known that it cannot yet: `deaf` then says why. */
  async start(): Promise<void> {
    this.#timer = setInterval(() => this.#tick(), tickMs).unref();
    await this.#listen();
    this.#tick();
  }

  /** The other nodes see us go at once. */
  stop(): void {
    this.#stopped = true;
    clearInterval(this.#timer);
    clearTimeout(this.#listenAgain);
    this.#server?.close();
    for (const { link } of this.#links.values()) link.close();
    this.#links.clear();
  }

  /** Takes in records that were made here: of who joins, who is removed, or our own. */
  change(members: MemberList): void {
    this.#step({ type: 'changed', members });
  }

  /** For new connections; those that stand are replaced before theirs end. */
  renew(credentials: Credentials): void {
    this.#credentials = credentials;
    if (this.#server !== undefined) renewServer(this.#server, credentials);
  }

  /** False when there is no connection. */
  send(member: string, message: PeerMessage): boolean {
    const id = this.#state.peers.get(member)?.link?.id;
    const link = id === undefined ? undefined : this.#links.get(id)?.link;
    link?.send(message);
    return link !== undefined;
  }

  nodes(): readonly NodeView[] {
    const { members, peers, self, facts } = this.#state;
    return members
      .filter((member) => !member.removed || member.id === self)
      .map((member) => {
        const peer: Partial<Peer> = peers.get(member.id) ?? {};
        return {
          member,
          reach: reachOf(this.#state, member.id),
          facts: member.id === self ? facts : peer.facts,
          roundTripUs: peer.roundTripUs,
          trouble: peer.trouble,
        };
      });
  }

  async #listen(): Promise<void> {
    const address = parseAddress(this.#options.self.address);
    if (address === undefined) return this.#cannotListen(new Error('it is no address'));
    const server = listenTls(this.#credentials, {
      node: (socket) => void this.#welcome(socket),
      join: (socket) => this.#options.onJoin(socket),
    });
    try {
      await new Promise<void>((resolve, reject) => {
        server.once('error', reject);
        server.listen({ host: address.host, port: address.port }, resolve);
      });
    } catch (error) {
      return this.#cannotListen(error);
    }
    if (this.#stopped) return void server.close();
    server.on('error', (error) => this.#options.log.warn({ reason: describe(error) }, 'listening'));
    this.#server = server;
    this.#deaf = undefined;
    this.#options.log.info({ address: formatAddress(address) }, 'listening for nodes');
  }

  #cannotListen(error: unknown): void {
    const why = `cannot listen on ${this.#options.self.address}: ${whyNot(error)}`;
    if (this.#deaf !== why) this.#options.log.warn({ reason: why }, 'nodes cannot reach this one');
    this.#deaf = why;
    if (this.#stopped) return;
    this.#listenAgain = setTimeout(() => void this.#listen(), listenAgainMs).unref();
  }

  #tick(): void {
    const nowMs = this.#options.clock.nowMs();
    this.#step({ type: 'tick', nowMs });
    if (nowMs < this.#factsDueMs) return;
    this.#factsDueMs = nowMs + factsMs;
    const facts = this.#options.facts();
    if (tellsMore(this.#state.facts, facts)) this.#step({ type: 'facts', facts });
  }

  #step(event: MembershipEvent): void {
    const { state, effects } = step(this.#state, event);
    this.#state = state;
    for (const effect of effects) this.#carryOut(effect);
  }

  #carryOut(effect: MembershipEffect): void {
    switch (effect.type) {
      case 'dial':
        return void this.#dial(effect.member);
      case 'send':
        return this.#links.get(effect.link)?.link.send(effect.message);
      case 'close':
        return this.#close(effect.link, effect.refusal);
      case 'persist':
        return this.#options.persist(this.members);
      case 'note': {
        const name = memberById(this.members, effect.node)?.name ?? effect.node;
        return this.#options.note(name, effect.what, effect.why);
      }
    }
  }

  #close(id: number, refusal: Refusal | undefined): void {
    const held = this.#links.get(id);
    this.#links.delete(id);
    held?.link.close(refusal);
  }

  #hello(): Hello {
    const { version, protocol = protocolVersion } = this.#options;
    const { id, name } = this.#options.self;
    return { cluster: this.#credentials.cluster, id, name, protocol, version, run: this.#run };
  }

  #greet(socket: TLSSocket, refuses: (node: Certified) => Refusal | undefined): Promise<Greeted> {
    return greet(socket, {
      hello: this.#hello(),
      credentials: this.#credentials,
      refuses: (node) => this.#unwanted(node) ?? refuses(node),
      nowMs: () => this.#options.clock.wall().getTime(),
    });
  }

  #unwanted({ id, name }: Certified): Refusal | undefined {
    if (memberById(this.members, id)?.removed === true) {
      return { code: 'removed', why: `node ${name} was removed from the cluster` };
    }
    if (id !== this.#state.self) return undefined;
    return { code: 'identity', why: `node ${name} has reached itself, or a copy of itself` };
  }

  async #dial(member: Member): Promise<void> {
    try {
      const address = parseAddress(member.address);
      if (address === undefined) throw new Error(`"${member.address}" is no address`);
      const socket = await dialNode(address, this.#credentials);
      const greeted = await this.#greet(socket, ({ id, name }) =>
        id === member.id
          ? undefined
          : { code: 'identity', why: `node ${name} answers where node ${member.name} should` },
      );
      this.#linked(greeted, 'here');
    } catch (error) {
      if (this.#stopped) return;
      const nowMs = this.#options.clock.nowMs();
      const refused = error instanceof PeerRefusal;
      this.#step({ type: 'dialFailed', nowMs, member: member.id, why: describe(error), refused });
    }
  }

  async #welcome(socket: TLSSocket): Promise<void> {
    try {
      this.#linked(await this.#greet(socket, () => undefined), 'there');
    } catch (error) {
      const from = socket.remoteAddress ?? 'an address that has gone';
      this.#options.log.info({ from, reason: describe(error) }, 'connection refused');
    }
  }

  #linked({ link, hello, untilMs }: Greeted, dialled: 'here' | 'there'): void {
    if (this.#stopped) return link.close();
    const { clock } = this.#options;
    const id = ++this.#lastLink;
    this.#links.set(id, { link, member: hello.id });
    const nowMs = clock.nowMs();
    const expiresMs = nowMs + untilMs - clock.wall().getTime();
    this.#step({ type: 'linked', nowMs, link: id, dialled, hello, expiresMs });
    link.listen(
      (message) => this.#received(id, hello.id, message),
      (why) => this.#unlinked(id, why),
    );
  }

  #received(link: number, from: string, message: PeerMessage): void {
    if (!this.#links.has(link)) return;
    this.#step({ type: 'received', nowMs: this.#options.clock.nowMs(), link, message });
    const member = memberById(this.members, from);
    if (member === undefined || member.removed) return;
    if (message.kind === 'renew' || message.kind === 'renewed' || isReplicaMessage(message)) {
      this.#options.onMessage(member, message);
    }
  }

  #unlinked(link: number, why: Error): void {
    if (!this.#links.delete(link)) return;
    const nowMs = this.#options.clock.nowMs();
    this.#step({ type: 'unlinked', nowMs, link, why: describe(why) });
  }
}

function tellsMore(before: NodeFacts, after: NodeFacts): boolean {
  const moved = Math.abs(before.memoryForReplicasBytes - after.memoryForReplicasBytes);
  return (
    moved > after.memoryBytes * memoryShare ||
    before.groups !== after.groups ||
    before.memoryBytes !== after.memoryBytes ||
    before.version !== after.version ||
    before.kernel !== after.kernel
  );
}
