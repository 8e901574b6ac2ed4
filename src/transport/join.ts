/**
 * How a node without a certificate gets one. The token names the cluster's CA, so that who joins
 * knows to whom it speaks before it says anything; its secret is never sent, but proved with an HMAC
 * over what is asked and over this very TLS connection, so that nobody can use what they overhear or
 * pass on. docs/formats/peer-messages.md.
 */
import { createHash, createHmac, timingSafeEqual } from 'node:crypto';
import type { TLSSocket } from 'node:tls';
import { describe } from '../base/errors.js';
import { pinOf, type JoinToken } from '../format/join-token.js';
import type { Joined, JoinRequest } from '../format/peer-messages.js';
import { FormatError } from '../format/shape.js';
import { checkIssued, readCertificate } from './identity.js';
import { PeerLink, PeerRefusal } from './peer-link.js';
import { dialStranger, type Address } from './peer-tls.js';

const exporterLabel = 'EXPORTER-replpage-join-1';
const stepMs = 5000;
/** The answer needs a signature, and a list made durable. */
const answerMs = 20_000;

/** In a fixed order, each with its length, so that no two requests read the same. */
function proofOf(secret: Buffer, socket: TLSSocket, request: Omit<JoinRequest, 'proof'>): string {
  const { token, protocol, version, name, zone, address, request: key } = request;
  const asked = JSON.stringify([token, protocol, version, name, zone, address, key]);
  return createHmac('sha256', secret)
    .update('replpage join 1')
    .update(socket.exportKeyingMaterial(32, exporterLabel, Buffer.alloc(0)))
    .update(createHash('sha256').update(asked).digest())
    .digest('base64');
}

/** Whether `request` was made by somebody who knows the secret, on this connection. */
export function proves(secret: Buffer, socket: TLSSocket, request: JoinRequest): boolean {
  const given = Buffer.from(request.proof, 'base64');
  const right = Buffer.from(proofOf(secret, socket, request), 'base64');
  return given.length === right.length && timingSafeEqual(given, right);
}

export interface JoinAsk {
  readonly token: JoinToken;
  readonly address: Address;
  readonly nowMs: number;
  /** The rest of the request, once the address on this side is known. */
  ask(localAddress: string): Omit<JoinRequest, 'token' | 'proof'>;
}

export interface JoinAnswer extends Joined {
  /** PEM, whose hash the token has. */
  readonly ca: string;
}

/** Rejects with PeerRefusal when the cluster refuses, and with an Error that says what else was wrong. */
export async function askToJoin(options: JoinAsk): Promise<JoinAnswer> {
  const { token, address, nowMs } = options;
  const socket = await dialStranger(address);
  const link = new PeerLink(socket);
  try {
    const offer = await link.next(stepMs);
    if (offer.kind !== 'joinOffer') throw new FormatError('what answers takes nobody in');
    checkOffer(socket, offer.body.ca, token.pin, nowMs);
    // It is the cluster that the token was made by: from here on it may hear and say more.
    link.trust();
    const asked = { ...options.ask(socket.localAddress ?? ''), token: token.id };
    const proof = proofOf(token.secret, socket, asked);
    link.send({ kind: 'joinRequest', body: { ...asked, proof } });
    const answer = await link.next(answerMs);
    if (answer.kind !== 'joined') throw new FormatError('the answer is none to a request to join');
    return { ...answer.body, ca: offer.body.ca };
  } finally {
    link.close();
  }
}

function checkOffer(socket: TLSSocket, ca: string, pin: Buffer, nowMs: number): void {
  const authority = readCertificate(ca);
  if (!pinOf(authority.raw).equals(pin)) {
    throw new FormatError('what answers there is not of the cluster that the token was made in');
  }
  const shown = socket.getPeerX509Certificate();
  if (shown === undefined) throw new FormatError('what answers there shows no certificate');
  checkIssued(shown, authority, nowMs);
}

/** Why a join came to nothing, for the user. */
export const whyNotJoined = (error: unknown): string =>
  error instanceof PeerRefusal ? `refused: ${error.message}` : describe(error);

/** Grants or throws PeerRefusal with the reason. */
export type Admit = (
  request: JoinRequest,
  from: { readonly address: string; proves(secret: Buffer): boolean },
) => Promise<Joined>;

/** The other end: one request, one answer. */
export async function answerJoin(socket: TLSSocket, ca: string, admit: Admit): Promise<void> {
  const link = new PeerLink(socket);
  try {
    link.send({ kind: 'joinOffer', body: { ca } });
    const first = await link.next(stepMs);
    if (first.kind !== 'joinRequest') throw new FormatError('that is no request to join');
    const request = first.body;
    const from = {
      address: socket.remoteAddress ?? '',
      proves: (secret: Buffer) => proves(secret, socket, request),
    };
    link.send({ kind: 'joined', body: await admit(request, from) });
    // The other side closes when it has read that.
    await link.next(stepMs).catch(() => undefined);
    link.close();
  } catch (error) {
    if (error instanceof PeerRefusal) link.close({ code: error.code, why: error.message });
    else link.close();
    throw error;
  }
}
