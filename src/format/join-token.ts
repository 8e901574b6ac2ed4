/**
 * What `replpage token` prints: which token it is, its secret, and the hash of the cluster's CA, so
 * that who joins knows the cluster before it says a word. docs/formats/peer-messages.md.
 */
import { createHash } from 'node:crypto';
import { fromBase32, toBase32 } from './base32.js';
import { crc32c } from './crc32c.js';
import { FormatError } from './shape.js';

const prefix = 'rpt1';
const idBytes = 4;
const secretBytes = 16;
const pinBytes = 16;
const plainBytes = idBytes + secretBytes + pinBytes;

export const tokenParts = { idBytes, secretBytes } as const;

export interface JoinToken {
  /** Names the token; says nothing about the secret. */
  readonly id: string;
  readonly secret: Buffer;
  /** First bytes of the SHA-256 of the CA's certificate. */
  readonly pin: Buffer;
}

/** `certificate` is DER. */
export function pinOf(certificate: Uint8Array): Buffer {
  return createHash('sha256').update(certificate).digest().subarray(0, pinBytes);
}

export function formatToken({ id, secret, pin }: JoinToken): string {
  const plain = Buffer.concat([Buffer.from(id, 'hex'), secret, pin]);
  const sum = Buffer.alloc(4);
  sum.writeUInt32BE(crc32c(plain));
  return prefix + toBase32(Buffer.concat([plain, sum]));
}

/** Throws FormatError. */
export function parseToken(text: string): JoinToken {
  if (!text.startsWith(prefix)) throw new FormatError(`it does not begin with ${prefix}`);
  const bytes = fromBase32(text.slice(prefix.length), plainBytes + 4);
  const plain = bytes.subarray(0, plainBytes);
  if (crc32c(plain) !== bytes.readUInt32BE(plainBytes)) {
    throw new FormatError('its checksum is wrong: a character is not right');
  }
  return {
    id: plain.toString('hex', 0, idBytes),
    secret: plain.subarray(idBytes, idBytes + secretBytes),
    pin: plain.subarray(idBytes + secretBytes),
  };
}
