/**
 * TLS between daemons: version 1.3 only, certificates on both sides, no resumption. Two protocols
 * share the port, told apart by ALPN: `replpage/1` for nodes, `replpage-join/1` for who has a token
 * and no certificate yet. docs/formats/peer-messages.md.
 */
import { once } from 'node:events';
import { isIPv6, type Socket } from 'node:net';
import {
  connect,
  createServer,
  type ConnectionOptions,
  type SecureContextOptions,
  type Server,
  type TLSSocket,
} from 'node:tls';
import { hasCode, isSystemError } from '../base/errors.js';
import type { Credentials } from './credentials.js';

export const protocols = { node: 'replpage/1', join: 'replpage-join/1' } as const;

/** From the first byte to the end of TLS's handshake. */
export const handshakeMs = 5000;
/** That are not known yet, whoever they are. */
export const strangersMax = 256;
const connectionsMax = 1024;

export interface Address {
  readonly host: string;
  readonly port: number;
}

/** "HOST:PORT" or "[HOST]:PORT"; undefined when it is neither. */
export function parseAddress(text: string, portDefault?: number): Address | undefined {
  const match = /^(?:\[([0-9a-fA-F:.%a-z]+)\]|([^\s:[\]]{1,255}))(?::(\d{1,5}))?$/.exec(text);
  const host = match?.[1] ?? match?.[2];
  const port = match?.[3] === undefined ? portDefault : Number(match[3]);
  if (host === undefined || port === undefined || port < 1 || port > 65_535) return undefined;
  return { host, port };
}

export const formatAddress = ({ host, port }: Address): string =>
  isIPv6(host) ? `[${host}]:${port}` : `${host}:${port}`;

const strict = { minVersion: 'TLSv1.3', maxVersion: 'TLSv1.3' } as const;

function tlsOf({ certificate, privateKey, ca }: Credentials): SecureContextOptions {
  return { ...strict, cert: certificate, key: privateKey, ca };
}

/** Who is let in is decided by the protocol's handler, which sees whether TLS believed the other side. */
export function listenTls(
  credentials: Credentials,
  handlers: Readonly<Record<keyof typeof protocols, (socket: TLSSocket) => void>>,
): Server {
  const server = createServer({
    ...tlsOf(credentials),
    requestCert: true,
    rejectUnauthorized: false,
    handshakeTimeout: handshakeMs,
    ALPNProtocols: Object.values(protocols),
  });
  server.maxConnections = connectionsMax;
  let strangers = 0;
  server.on('connection', (socket: Socket) => {
    if (++strangers > strangersMax) socket.destroy();
    // Handlers have deadlines of their own from here on.
    const known = setTimeout(done, handshakeMs * 2);
    function done(): void {
      clearTimeout(known);
      socket.off('close', done);
      strangers--;
    }
    socket.once('close', done);
  });
  server.on('secureConnection', (socket) => {
    socket.on('error', () => undefined);
    if (socket.isSessionReused()) return void socket.destroy();
    if (socket.alpnProtocol === protocols.node) handlers.node(socket);
    else if (socket.alpnProtocol === protocols.join) handlers.join(socket);
    else socket.destroy();
  });
  // Whoever fails in the handshake learns nothing, and is nobody's concern.
  server.on('tlsClientError', (_error, socket) => socket.destroy());
  return server;
}

/** New connections have the new certificate; those that stand keep theirs. */
export function renewServer(server: Server, credentials: Credentials): void {
  server.setSecureContext(tlsOf(credentials));
}

/** As a node. Rejects with what is wrong in words. */
export function dialNode(address: Address, credentials: Credentials): Promise<TLSSocket> {
  return dial(address, {
    ...tlsOf(credentials),
    ALPNProtocols: [protocols.node],
    // Who it is stands in the certificate's own name, which the caller looks at.
    checkServerIdentity: () => undefined,
  });
}

/** Without a certificate, and believing nobody: the caller checks the other side's itself. */
export function dialStranger(address: Address): Promise<TLSSocket> {
  return dial(address, { ...strict, rejectUnauthorized: false, ALPNProtocols: [protocols.join] });
}

async function dial({ host, port }: Address, options: ConnectionOptions): Promise<TLSSocket> {
  const socket = connect({ ...options, host, port });
  const late = setTimeout(() => {
    socket.destroy(new Error(`no answer within ${handshakeMs / 1000} s`));
  }, handshakeMs);
  try {
    await once(socket, 'secureConnect');
    socket.on('error', () => undefined);
    return socket;
  } catch (error) {
    socket.destroy();
    throw new Error(whyNot(error));
  } finally {
    clearTimeout(late);
  }
}

const reasons: Readonly<Record<string, string>> = {
  CERT_HAS_EXPIRED: 'its certificate has expired',
  CERT_NOT_YET_VALID: 'its certificate is not valid yet: see the clocks',
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: 'its certificate was not issued by this cluster',
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: 'its certificate was not issued by this cluster',
  DEPTH_ZERO_SELF_SIGNED_CERT: 'its certificate was not issued by this cluster',
  SELF_SIGNED_CERT_IN_CHAIN: 'its certificate was not issued by this cluster',
  CERT_SIGNATURE_FAILURE: 'its certificate was not issued by this cluster',
  ECONNREFUSED: 'nothing listens there',
  EHOSTUNREACH: 'there is no way to that host',
  ENETUNREACH: 'there is no way to that network',
  ETIMEDOUT: 'it does not answer',
  ECONNRESET: 'it hung up in the middle of the handshake',
  ENOTFOUND: 'there is no host of that name',
  ERR_SSL_TLSV1_ALERT_NO_APPLICATION_PROTOCOL: 'what listens there is no replpage daemon',
  ERR_SSL_WRONG_VERSION_NUMBER: 'what listens there is no replpage daemon',
};

/** OpenSSL's and the system's names in words. */
export function whyNot(error: unknown): string {
  for (const [code, words] of Object.entries(reasons)) if (hasCode(error, code)) return words;
  if (isSystemError(error)) return `${error.message} (${error.code})`;
  return error instanceof Error ? error.message : String(error);
}
