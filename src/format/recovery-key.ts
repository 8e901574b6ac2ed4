/**
 * The key of the page store for a person to write down: 14 groups of four characters, of which the
 * last 24 bits are a checksum. `key export` has another form, for machines; both are taken.
 */
import { createHash } from 'node:crypto';
import { fromBase32, toBase32 } from './base32.js';
import { crc32c } from './crc32c.js';
import { FormatError } from './shape.js';

export const storeKeyBytes = 32;
const checksumBytes = 3;
const exported = /^([0-9a-f]{64})-([0-9a-f]{8})$/;

function checksumOf(key: Uint8Array): Buffer {
  const hash = createHash('sha256').update('replpage recovery key 1').update(key);
  return hash.digest().subarray(0, checksumBytes);
}

export function formatRecoveryKey(key: Uint8Array): string {
  const digits = toBase32(Buffer.concat([key, checksumOf(key)]));
  return (digits.match(/.{4}/g) ?? []).join('-');
}

/** Either form. Throws FormatError. */
export function parseKey(text: string): Buffer {
  const match = exported.exec(text.trim());
  if (match?.[1] !== undefined && match[2] !== undefined) {
    const key = Buffer.from(match[1], 'hex');
    if (crc32c(key) === Number.parseInt(match[2], 16)) return key;
    throw new FormatError('its checksum is wrong: a character is not right');
  }
  const bytes = fromBase32(text, storeKeyBytes + checksumBytes);
  const key = bytes.subarray(0, storeKeyBytes);
  if (checksumOf(key).equals(bytes.subarray(storeKeyBytes))) return key;
  throw new FormatError('its checksum is wrong: a character is not right');
}
