/**
 * Lets nodes in, on a node that holds the CA's key: makes one-time tokens, and answers who comes with
 * one. A node is in the list, durably, before it has its certificate.
 */
import { randomBytes } from 'node:crypto';
import type { TLSSocket } from 'node:tls';
import type { Clock } from '../base/clock.js';
import { describe, ReplicationError } from '../base/errors.js';
import type { Log } from '../base/log.js';
import { formatToken, pinOf, tokenParts } from '../format/join-token.js';
import {
  membersMax,
  protocolsMeet,
  protocolVersion,
  recordsMax,
  type Joined,
  type JoinRequest,
  type Member,
  type Refusal,
} from '../format/peer-messages.js';
import { FormatError } from '../format/shape.js';
import { sign, type Authority } from '../transport/certificates.js';
import { readCertificate } from '../transport/identity.js';
import { answerJoin } from '../transport/join.js';
import { PeerRefusal } from '../transport/peer-link.js';
import { parseAddress } from '../transport/peer-tls.js';
import { addToken, claim, mayTry, noAdmission, type AdmissionState } from './admission-state.js';
import { liveMembers, type MemberList } from './member-list.js';

export interface AdmissionOptions {
  readonly cluster: string;
  readonly authority: Authority;
  /** Of a certificate. */
  readonly lifeMs: number;
  readonly clock: Clock;
  readonly log: Log;
  /** For tests of versions that are apart. */
  readonly protocol?: number;
  members(): MemberList;
  /** Makes records durable, then tells everybody. Rejects when that is not possible. */
  commit(members: MemberList): Promise<void>;
  /** Of the page stores. */
  storeKey(): Promise<Buffer>;
}

interface Caller {
  readonly address: string;
  proves(secret: Buffer): boolean;
}

const refusal = (code: Refusal['code'], why: string): PeerRefusal => new PeerRefusal({ code, why });

export class Admission {
  readonly #options: AdmissionOptions;
  readonly #secrets = new Map<string, Buffer>();
  #state: AdmissionState = noAdmission;
  /** One after the other: two that want the same name must see each other. */
  #turn: Promise<unknown> = Promise.resolve();

  constructor(options: AdmissionOptions) {
    this.#options = options;
  }

  /** What is printed for the operator; `signs`: the node is to hold the CA's key. */
  makeToken(ttlMs: number, signs: boolean): string {
    const { clock, authority } = this.#options;
    const id = randomBytes(tokenParts.idBytes).toString('hex');
    const nowMs = clock.nowMs();
    const state = addToken(this.#state, { id, expiresMs: nowMs + ttlMs, signs }, nowMs);
    if (state === undefined) {
      throw new ReplicationError('ERR_LIMIT', 'there are too many tokens that nobody used', {
        advice: 'wait until some have expired, or start the daemon again, which forgets them',
      });
    }
    this.#state = state;
    const secret = randomBytes(tokenParts.secretBytes);
    this.#secrets.set(id, secret);
    for (const known of this.#secrets.keys()) {
      if (!state.tokens.some((token) => token.id === known)) this.#secrets.delete(known);
    }
    return formatToken({ id, secret, pin: pinOf(readCertificate(authority.certificate).raw) });
  }

  /** Never rejects. */
  async answer(socket: TLSSocket): Promise<void> {
    const { authority, log } = this.#options;
    const from = socket.remoteAddress ?? '';
    try {
      await answerJoin(socket, authority.certificate, (request, caller) =>
        this.#inTurn(() => this.admit(request, caller)),
      );
    } catch (error) {
      log.warn({ from, reason: describe(error) }, 'nobody joined');
    }
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#turn.then(work);
    this.#turn = done.catch(() => undefined);
    return done;
  }

  /** Throws PeerRefusal. */
  async admit(request: JoinRequest, caller: Caller): Promise<Joined> {
    const { cluster, clock, log } = this.#options;
    const nowMs = clock.nowMs();
    const before = this.#state;
    const tried = mayTry(before, caller.address, nowMs);
    this.#state = tried.state;
    if (!tried.allowed) throw refusal('busy', 'too many tries from that address: wait a little');
    const secret = this.#secrets.get(request.token);
    const proof = caller.proves(secret ?? randomBytes(tokenParts.secretBytes));
    const right = proof && secret !== undefined;
    // Only guesses count as tries.
    if (right) this.#state = before;
    const { verdict } = claim(this.#state, request.token, right, nowMs);
    if (verdict.kind === 'refused') throw refusal('token', verdict.why);
    // Who comes this far has the token; it stays good when what is asked is not.
    const member = this.#memberOf(request, verdict.token.signs);
    const certificate = await this.#certify(member, request.request);
    const key = await this.#options.storeKey();
    const records = [...this.#neverCame(member.name), member];
    await this.#options.commit(records).catch((error: unknown) => {
      throw refusal('busy', `the new node could not be recorded: ${describe(error)}`);
    });
    this.#state = claim(this.#state, request.token, true, nowMs).state;
    log.info({ node: member.name, address: member.address }, 'a node joined');
    return {
      ...{ cluster, member, certificate, members: this.#options.members() },
      storeKey: key.toString('base64'),
      caKey: verdict.token.signs ? this.#options.authority.privateKey : null,
      certificateLifeMs: this.#options.lifeMs,
    };
  }

  #memberOf(request: JoinRequest, signs: boolean): Member {
    const { name, zone, address, protocol, version } = request;
    const own = this.#options.protocol ?? protocolVersion;
    if (!protocolsMeet(protocol, own)) {
      const why = `protocol ${protocol} of version ${version} and protocol ${own} here are too far apart`;
      throw refusal('protocol', why);
    }
    if (parseAddress(address) === undefined) {
      throw refusal('identity', `"${address}" is no address to listen on`);
    }
    const members = this.#options.members();
    const live = liveMembers(members);
    const came = live.filter((member) => !isAwaited(member));
    if (came.some((member) => member.name === name)) {
      const advice = 'give another with --name, or remove that one first';
      throw refusal('identity', `there is a node ${name} already: ${advice}`);
    }
    const there = came.find((member) => member.address === address);
    if (there !== undefined) {
      throw refusal('identity', `node ${there.name} listens on ${address} already`);
    }
    if (live.length >= membersMax || members.length >= recordsMax) {
      throw refusal('busy', `a cluster has at most ${membersMax} nodes`);
    }
    const id = randomBytes(8).toString('hex');
    return { id, name, address, zone, signs, revision: 0, removed: false };
  }

  async #certify({ id, name }: Member, request: string): Promise<string> {
    const { authority, cluster, lifeMs, clock } = this.#options;
    const validity = { nowMs: clock.wall().getTime(), lifeMs };
    try {
      return await sign(authority, { cluster, id, name }, request, validity);
    } catch (error) {
      if (error instanceof FormatError) throw refusal('certificate', error.message);
      throw error;
    }
  }

  /** A node of that name whose answer was lost on its way gives way. */
  #neverCame(name: string): MemberList {
    return liveMembers(this.#options.members())
      .filter((member) => member.name === name && isAwaited(member))
      .map((member) => ({ ...member, removed: true }));
  }
}

/** It was let in, but has not yet said that it is there. */
export const isAwaited = ({ revision }: Member): boolean => revision === 0;
