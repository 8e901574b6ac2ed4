/**
 * Bytes for people to type: Crockford's alphabet, without I, L, O and U. Small letters, and the
 * letters that look like digits, are taken as meant.
 */
import { FormatError } from './shape.js';

const alphabet = '0123456789abcdefghjkmnpqrstvwxyz';

/** The last digit is filled up with zero bits. */
export function toBase32(bytes: Uint8Array): string {
  let text = '';
  let bits = 0;
  let held = 0;
  for (const byte of bytes) {
    held = (held << 8) | byte;
    bits += 8;
    while (bits >= 5) {
      bits -= 5;
      text += alphabet[(held >>> bits) & 31];
    }
    held &= (1 << bits) - 1;
  }
  return bits > 0 ? text + alphabet[(held << (5 - bits)) & 31] : text;
}

/** Dashes and blanks do not count. Throws FormatError unless it is `length` bytes exactly. */
export function fromBase32(text: string, length: number): Buffer {
  const digits = text.replace(/[\s-]/g, '').toLowerCase().replace(/o/g, '0').replace(/[il]/g, '1');
  if (digits.length !== Math.ceil((length * 8) / 5)) {
    throw new FormatError(`it has ${digits.length} characters, not ${Math.ceil((length * 8) / 5)}`);
  }
  const bytes = Buffer.alloc(length);
  let bits = 0;
  let held = 0;
  let at = 0;
  for (const digit of digits) {
    const value = alphabet.indexOf(digit);
    if (value < 0) throw new FormatError('it has a character that is none of its alphabet');
    held = (held << 5) | value;
    bits += 5;
    if (bits < 8) continue;
    bits -= 8;
    bytes[at++] = held >>> bits;
    held &= (1 << bits) - 1;
  }
  if (held !== 0) throw new FormatError('its last character is not right');
  return bytes;
}
