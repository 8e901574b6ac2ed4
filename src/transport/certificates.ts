/**
 * The cluster's private CA and what it signs; the only file that knows the X.509 library, which is
 * loaded when first needed. Keys are P-256, texts are PEM. Reading and checking certificates is left
 * to node:crypto (identity.ts).
 */
import { randomBytes, webcrypto } from 'node:crypto';
import { FormatError } from '../format/shape.js';
import { identityUri, type Identity } from './identity.js';

export interface KeyPair {
  readonly privateKey: string;
  readonly keys: webcrypto.CryptoKeyPair;
}

export interface Authority {
  readonly certificate: string;
  readonly privateKey: string;
}

const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;
const caYears = 30;
const yearMs = 365 * 24 * 3_600_000;
/** Before now, for nodes whose clocks are behind; at most a tenth of the life. */
const earlierMs = 3_600_000;

type Library = typeof import('@peculiar/x509');
let loaded: Promise<Library> | undefined;

function library(): Promise<Library> {
  loaded ??= (async () => {
    await import('reflect-metadata');
    const x509 = await import('@peculiar/x509');
    x509.cryptoProvider.set(webcrypto);
    return x509;
  })();
  return loaded;
}

/** Positive, as RFC 5280 wants it, and not guessed. */
function serialNumber(): string {
  const bytes = randomBytes(16);
  bytes[0] = ((bytes[0] ?? 0) & 0x7f) | 0x40;
  return bytes.toString('hex');
}

async function exportKey(key: webcrypto.CryptoKey): Promise<string> {
  const der = Buffer.from(await webcrypto.subtle.exportKey('pkcs8', key)).toString('base64');
  const lines = der.match(/.{1,64}/g) ?? [];
  return `-----BEGIN PRIVATE KEY-----\n${lines.join('\n')}\n-----END PRIVATE KEY-----\n`;
}

async function importKey(pem: string): Promise<webcrypto.CryptoKey> {
  const der = Buffer.from(pem.replace(/-----[^-]+-----|\s/g, ''), 'base64');
  return webcrypto.subtle.importKey('pkcs8', der, algorithm, false, ['sign']);
}

/** Made where it is used: a private key never leaves its node. */
export async function makeKeyPair(): Promise<KeyPair> {
  const keys = await webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify']);
  return { privateKey: await exportKey(keys.privateKey), keys };
}

export async function makeAuthority(cluster: string, nowMs: number): Promise<Authority> {
  const x509 = await library();
  const { privateKey, keys } = await makeKeyPair();
  const { BasicConstraintsExtension, KeyUsagesExtension, KeyUsageFlags } = x509;
  const made = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: serialNumber(),
    name: `CN=replpage cluster ${cluster}`,
    notBefore: new Date(nowMs - earlierMs),
    notAfter: new Date(nowMs + caYears * yearMs),
    keys: keys,
    signingAlgorithm: algorithm,
    extensions: [
      new BasicConstraintsExtension(true, 0, true),
      new KeyUsagesExtension(KeyUsageFlags.keyCertSign | KeyUsageFlags.cRLSign, true),
    ],
  });
  return { certificate: `${made.toString('pem')}\n`, privateKey };
}

/** PKCS#10, base64 of DER: says that who asks has the key. The name in it means nothing. */
export async function makeRequest({ keys }: KeyPair): Promise<string> {
  const x509 = await library();
  const request = await x509.Pkcs10CertificateRequestGenerator.create({
    name: 'CN=replpage node',
    keys: keys,
    signingAlgorithm: algorithm,
  });
  return request.toString('base64');
}

/** For the identity that the caller has made sure of. Throws FormatError for what is no request. */
export async function sign(
  authority: Authority,
  identity: Identity,
  request: string,
  validity: { readonly nowMs: number; readonly lifeMs: number },
): Promise<string> {
  const x509 = await library();
  const publicKey = await requestedKey(x509, request);
  const { nowMs, lifeMs } = validity;
  const { ExtendedKeyUsage, KeyUsageFlags } = x509;
  const made = await x509.X509CertificateGenerator.create({
    serialNumber: serialNumber(),
    subject: `CN=${identity.name}`,
    issuer: new x509.X509Certificate(authority.certificate).subject,
    notBefore: new Date(nowMs - Math.min(earlierMs, lifeMs / 10)),
    notAfter: new Date(nowMs + lifeMs),
    signingKey: await importKey(authority.privateKey),
    publicKey,
    signingAlgorithm: algorithm,
    extensions: [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(KeyUsageFlags.digitalSignature, true),
      new x509.ExtendedKeyUsageExtension(
        [ExtendedKeyUsage.serverAuth, ExtendedKeyUsage.clientAuth],
        true,
      ),
      new x509.SubjectAlternativeNameExtension([{ type: 'url', value: identityUri(identity) }]),
    ],
  });
  return `${made.toString('pem')}\n`;
}

async function requestedKey(x509: Library, request: string) {
  let parsed;
  try {
    parsed = new x509.Pkcs10CertificateRequest(request);
  } catch {
    throw new FormatError('what came is no certificate request');
  }
  const key = parsed.publicKey;
  const { name, namedCurve } = key.algorithm as { name?: string; namedCurve?: string };
  if (name !== 'ECDSA' || namedCurve !== 'P-256') {
    throw new FormatError('the key of the certificate request is not P-256');
  }
  const proved = await parsed.verify().catch(() => false);
  if (!proved) throw new FormatError('the certificate request is not signed with its own key');
  return key;
}
