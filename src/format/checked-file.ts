/**
 * JSON in a file that is believed wholly or not at all: a line with kind, version, length and
 * checksum, then the body. docs/formats/state-file.md.
 */
import { createHash } from 'node:crypto';
import { FormatError } from './shape.js';

export interface FileKind {
  /** The first word of the file. */
  readonly mark: string;
  readonly version: number;
}

const headerPattern = /^(replpage-[a-z]+) (\d{1,9}) (\d{1,9}) ([0-9a-f]{64})$/;
/** Of the header line, amply. */
const headerBytesMax = 128;

const checksumOf = (body: Buffer): string => createHash('sha256').update(body).digest('hex');

export function formatChecked({ mark, version }: FileKind, value: unknown): Buffer {
  const body = Buffer.from(`${JSON.stringify(value, null, 1)}\n`);
  const header = `${mark} ${version} ${body.length} ${checksumOf(body)}\n`;
  return Buffer.concat([Buffer.from(header), body]);
}

/** Throws FormatError that says what is wrong with the file. */
export function parseChecked(kind: FileKind, file: Buffer): unknown {
  const end = file.subarray(0, headerBytesMax).indexOf('\n');
  const header = headerPattern.exec(file.toString('latin1', 0, Math.max(0, end)));
  const [, mark, version, length, checksum] = header ?? [];
  if (mark !== kind.mark) throw new FormatError(`it does not begin with ${kind.mark}`);
  if (Number(version) !== kind.version) {
    throw new FormatError(`its version is ${version}, known is ${kind.version}`);
  }
  const body = file.subarray(end + 1);
  if (body.length !== Number(length)) {
    throw new FormatError(`it has ${body.length} bytes after its first line instead of ${length}`);
  }
  if (checksumOf(body) !== checksum) throw new FormatError('its checksum is wrong');
  try {
    return JSON.parse(body.toString('utf8'));
  } catch {
    throw new FormatError('its body is not JSON');
  }
}
