/**
 * Frames between daemons: a header of 24 bytes, then the body. docs/formats/peer-messages.md. The
 * reader believes nothing: not the length before the header's checksum, not the body before its own.
 */
import { crc32c } from './crc32c.js';
import { FormatError } from './shape.js';

export const frameHeaderBytes = 24;
/** "RPPC" as it lies on the wire. */
const magic = 0x43505052;
/** Of the header's layout; what the bodies mean is agreed on in the hello. */
const frameVersion = 1;
/** Bytes 0 to 15 are what the header's checksum covers. */
const checkedBytes = 16;

export interface Frame {
  readonly type: number;
  readonly body: Buffer;
}

export function encodeFrame(type: number, body: Uint8Array): Buffer {
  const frame = Buffer.allocUnsafe(frameHeaderBytes + body.length);
  frame.writeUInt32LE(magic, 0);
  frame.writeUInt16LE(frameVersion, 4);
  frame.writeUInt16LE(type, 6);
  frame.writeUInt32LE(body.length, 8);
  frame.writeUInt32LE(crc32c(body), 12);
  frame.writeUInt32LE(crc32c(frame.subarray(0, checkedBytes)), 16);
  frame.writeUInt32LE(0, 20);
  frame.set(body, frameHeaderBytes);
  return frame;
}

interface Header {
  readonly type: number;
  readonly length: number;
  readonly checksum: number;
}

/** Cuts frames out of a stream, wherever that is split; keeps at most one. */
export class FrameReader {
  /** Of a body: a frame that says more is refused before there is room for it. */
  bodyBytesMax: number;
  /** Of the body that is being read; undefined while its header is. */
  #header: Header | undefined;
  #part: Buffer = Buffer.alloc(frameHeaderBytes);
  #filled = 0;

  constructor(bodyBytesMax: number) {
    this.bodyBytesMax = bodyBytesMax;
  }

  /** Part of a frame has come, the rest has not. */
  get waiting(): boolean {
    return this.#header !== undefined || this.#filled > 0;
  }

  /** Throws FormatError, after which the stream is of no use. */
  *push(chunk: Buffer): Generator<Frame> {
    let at = 0;
    while (at < chunk.length) {
      const taken = chunk.copy(this.#part, this.#filled, at);
      at += taken;
      this.#filled += taken;
      while (this.#filled === this.#part.length) {
        const frame = this.#complete(this.#part);
        if (frame === undefined) continue;
        yield frame;
        break;
      }
    }
  }

  #complete(part: Buffer): Frame | undefined {
    const header = this.#header;
    this.#filled = 0;
    if (header === undefined) {
      this.#header = this.#parse(part);
      this.#part = Buffer.allocUnsafe(this.#header.length);
      return undefined;
    }
    this.#header = undefined;
    this.#part = Buffer.allocUnsafe(frameHeaderBytes);
    if (crc32c(part) !== header.checksum) throw new FormatError('a body has a wrong checksum');
    return { type: header.type, body: part };
  }

  #parse(bytes: Buffer): Header {
    if (bytes.readUInt32LE(0) !== magic) throw new FormatError('what came is no frame');
    if (crc32c(bytes.subarray(0, checkedBytes)) !== bytes.readUInt32LE(16)) {
      throw new FormatError('a header has a wrong checksum');
    }
    const version = bytes.readUInt16LE(4);
    if (version !== frameVersion) throw new FormatError(`a frame has the version ${version}`);
    if (bytes.readUInt32LE(20) !== 0) throw new FormatError('a reserved field is not zero');
    const length = bytes.readUInt32LE(8);
    if (length > this.bodyBytesMax) {
      throw new FormatError(`a frame of ${length} bytes is over ${this.bodyBytesMax}`);
    }
    return { type: bytes.readUInt16LE(6), length, checksum: bytes.readUInt32LE(12) };
  }
}
