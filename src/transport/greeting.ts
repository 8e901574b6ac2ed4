/**
 * The first words on a connection of two nodes. TLS has shown that the other side has a key and a
 * certificate; here it is seen whose, and whether both speak alike. What does not fit is refused
 * with the reason, so that both sides can tell their users.
 */
import type { TLSSocket } from 'node:tls';
import { describe } from '../base/errors.js';
import { protocolsMeet, type Hello, type Refusal } from '../format/peer-messages.js';
import { certified, checkIssued, readCertificate, type Certified } from './identity.js';
import { PeerLink, PeerRefusal } from './peer-link.js';
import { whyNot } from './peer-tls.js';
import type { Credentials } from './credentials.js';

export interface Greeted {
  readonly link: PeerLink;
  readonly hello: Hello;
  /** Wall time at which the sooner of the two certificates ends. */
  readonly untilMs: number;
}

export interface GreetingOptions {
  readonly hello: Hello;
  readonly credentials: Credentials;
  /** Why a node that TLS believes is not wanted; undefined when it is. */
  refuses(node: Certified): Refusal | undefined;
  nowMs(): number;
  readonly limitMs?: number;
}

const helloMs = 5000;

/** Rejects with PeerRefusal when either side refuses. */
export async function greet(socket: TLSSocket, options: GreetingOptions): Promise<Greeted> {
  const link = new PeerLink(socket);
  try {
    const other = checkedPeer(socket, options);
    link.send({ kind: 'hello', body: options.hello });
    const first = await link.next(options.limitMs ?? helloMs);
    if (first.kind !== 'hello') throw refusal('identity', 'the first message is no hello');
    checkHello(first.body, other, options.hello);
    link.trust();
    const own = certified(readCertificate(options.credentials.certificate));
    return { link, hello: first.body, untilMs: Math.min(own.untilMs, other.untilMs) };
  } catch (error) {
    if (!(error instanceof PeerRefusal)) link.close();
    else link.close({ code: error.code, why: error.message });
    throw error;
  }
}

const refusal = (code: Refusal['code'], why: string): PeerRefusal => new PeerRefusal({ code, why });

function checkedPeer(socket: TLSSocket, options: GreetingOptions): Certified {
  const certificate = socket.getPeerX509Certificate();
  if (certificate === undefined) throw refusal('certificate', 'there is no certificate');
  if (!socket.authorized) {
    const code = String(socket.authorizationError);
    throw refusal('certificate', whyNot(Object.assign(new Error(code), { code })));
  }
  let node: Certified;
  try {
    node = checkIssued(certificate, readCertificate(options.credentials.ca), options.nowMs());
  } catch (error) {
    throw refusal('certificate', describe(error));
  }
  if (node.cluster !== options.credentials.cluster) {
    throw refusal('cluster', 'the certificate is one of another cluster');
  }
  const unwanted = options.refuses(node);
  if (unwanted !== undefined) throw new PeerRefusal(unwanted);
  return node;
}

function checkHello(theirs: Hello, node: Certified, ours: Hello): void {
  if (theirs.cluster !== ours.cluster) {
    throw refusal('cluster', `cluster ${theirs.cluster} is not cluster ${ours.cluster}`);
  }
  if (theirs.id !== node.id || theirs.name !== node.name) {
    throw refusal('identity', `node ${theirs.name} has the certificate of node ${node.name}`);
  }
  if (protocolsMeet(theirs.protocol, ours.protocol)) return;
  throw refusal('protocol', versionsApart(ours, theirs));
}

/** The same words on both sides. */
function versionsApart(one: Hello, other: Hello): string {
  const [older, newer] = one.protocol < other.protocol ? [one, other] : [other, one];
  return (
    `node ${older.name} (version ${older.version}, protocol ${older.protocol}) and node ` +
    `${newer.name} (version ${newer.version}, protocol ${newer.protocol}) are more than one ` +
    `protocol apart: bring ${older.name} up to date`
  );
}
