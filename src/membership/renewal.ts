/**
 * Keeps this node's certificate alive: in time it makes a new key and has a node that holds the CA's
 * key sign for it, over a connection that stands. A node that holds that key also answers such requests.
 */
import type { Clock } from '../base/clock.js';
import { describe } from '../base/errors.js';
import type { Log } from '../base/log.js';
import type { Member } from '../format/peer-messages.js';
import { FormatError } from '../format/shape.js';
import { createPrivateKey, createPublicKey } from 'node:crypto';
import {
  makeKeyPair,
  makeRequest,
  sign,
  type Authority,
  type KeyPair,
} from '../transport/certificates.js';
import type { Credentials } from '../transport/credentials.js';
import { certified, checkIssued, readCertificate } from '../transport/identity.js';
import { healthOf, renewalDue, type CertificateHealth } from './renewal-policy.js';

export interface RenewalOptions {
  readonly clock: Clock;
  readonly log: Log;
  /** Where this node holds the CA's key. */
  readonly authority: Authority | undefined;
  /** Of certificates that are signed here. */
  readonly lifeMs: number;
  credentials(): Credentials;
  /** Sends the request to a node that signs and can be reached; undefined: there is none. */
  askSigner(request: string): string | undefined;
  reply(member: Member, certificate: string): void;
  /** Makes them durable, then uses them. */
  use(credentials: Credentials): Promise<void>;
}

const answerMs = 30_000;

export class Renewal {
  readonly #options: RenewalOptions;
  #lastTryMs: number | undefined;
  /** A request that is under way. */
  #pending: { readonly pair: KeyPair; readonly sinceMs: number } | undefined;
  #busy = false;
  #trouble: string | undefined;

  constructor(options: RenewalOptions) {
    this.#options = options;
  }

  get health(): CertificateHealth {
    return healthOf(this.#own(), this.#wallMs());
  }

  get untilMs(): number {
    return this.#own().untilMs;
  }

  /** Why the last try came to nothing. */
  get trouble(): string | undefined {
    return this.#trouble;
  }

  /** Call it now and then. */
  async tick(): Promise<void> {
    const wallMs = this.#wallMs();
    const pending = this.#pending;
    if (pending !== undefined && this.#options.clock.nowMs() - pending.sinceMs > answerMs) {
      this.#failed('the node that was asked to sign does not answer');
    }
    if (this.#busy || this.#pending !== undefined) return;
    if (!renewalDue(this.#own(), wallMs, this.#lastTryMs)) return;
    this.#lastTryMs = wallMs;
    await this.#guarded(() => this.#begin());
  }

  /** A signed certificate for the key of our request. */
  async renewed(certificate: string): Promise<void> {
    const pending = this.#pending;
    if (pending === undefined) return;
    this.#pending = undefined;
    await this.#guarded(() => this.#finish(pending.pair, certificate));
  }

  /** Another node asks. It is who its connection says, whatever the request says. */
  async renew(member: Member, request: string): Promise<void> {
    const { authority, log } = this.#options;
    if (authority === undefined) return;
    try {
      this.#options.reply(member, await this.#sign(authority, member, request));
      log.info({ node: member.name }, 'certificate renewed for a node');
    } catch (error) {
      log.warn({ node: member.name, reason: describe(error) }, 'certificate not renewed');
    }
  }

  async #begin(): Promise<void> {
    const pair = await makeKeyPair();
    const request = await makeRequest(pair);
    const { authority, clock } = this.#options;
    if (authority !== undefined) {
      const self = certified(readCertificate(this.#options.credentials().certificate));
      return this.#finish(pair, await this.#sign(authority, self, request));
    }
    this.#pending = { pair, sinceMs: clock.nowMs() };
    if (this.#options.askSigner(request) !== undefined) return;
    this.#failed('no node that may sign certificates can be reached');
  }

  #sign(
    authority: Authority,
    { id, name }: { readonly id: string; readonly name: string },
    request: string,
  ): Promise<string> {
    const { cluster } = this.#options.credentials();
    const validity = { nowMs: this.#wallMs(), lifeMs: this.#options.lifeMs };
    return sign(authority, { cluster, id, name }, request, validity);
  }

  async #finish(pair: KeyPair, pem: string): Promise<void> {
    const before = this.#options.credentials();
    checkOwn(pem, pair.privateKey, before, this.#wallMs());
    await this.#options.use({ ...before, certificate: pem, privateKey: pair.privateKey });
    this.#trouble = undefined;
    this.#lastTryMs = undefined;
    this.#options.log.info({ until: new Date(this.untilMs).toISOString() }, 'certificate renewed');
  }

  async #guarded(work: () => Promise<void>): Promise<void> {
    this.#busy = true;
    try {
      await work();
    } catch (error) {
      this.#failed(describe(error));
    } finally {
      this.#busy = false;
    }
  }

  #failed(why: string): void {
    this.#pending = undefined;
    if (this.#trouble !== why) this.#options.log.warn({ reason: why }, 'certificate not renewed');
    this.#trouble = why;
  }

  #own() {
    return certified(readCertificate(this.#options.credentials().certificate));
  }

  #wallMs(): number {
    return this.#options.clock.wall().getTime();
  }
}

/** Throws FormatError unless the certificate is for that key and for the same node as before. */
export function checkOwn(
  pem: string,
  privateKey: string,
  { certificate, ca }: Pick<Credentials, 'certificate' | 'ca'>,
  nowMs: number,
): void {
  const given = readCertificate(pem);
  const node = checkIssued(given, readCertificate(ca), nowMs);
  const before = certified(readCertificate(certificate));
  if (node.cluster !== before.cluster || node.id !== before.id || node.name !== before.name) {
    throw new FormatError('the certificate is for another node');
  }
  if (!certifies(pem, privateKey)) throw new FormatError('the certificate is for another key');
}

export function certifies(pem: string, privateKey: string): boolean {
  const own = createPublicKey(createPrivateKey(privateKey));
  return readCertificate(pem).publicKey.equals(own);
}
