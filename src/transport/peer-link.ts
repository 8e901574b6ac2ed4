/**
 * One connection with another daemon: frames in and out, and the limits that hold on it. What comes
 * is decoded before anybody sees it; the first thing wrong ends the connection, with the reason.
 */
import type { TLSSocket } from 'node:tls';
import { FrameReader } from '../format/frame.js';
import {
  bodyBytesMax,
  decodeMessage,
  encodeMessage,
  type PeerMessage,
  type Refusal,
} from '../format/peer-messages.js';
import { FormatError } from '../format/shape.js';

export interface LinkLimits {
  /** For a frame, from its first byte to its last. */
  readonly frameMs: number;
  /** That the other side has not taken yet: one that reads too slowly is let go. */
  readonly unsentBytesMax: number;
}

export const linkLimits: LinkLimits = { frameMs: 10_000, unsentBytesMax: 8 * 1024 * 1024 };
/** Messages that come before anybody asks for them. */
const earlyMax = 16;
/** For a refusal to be read before the connection goes. */
const lingerMs = 1000;

/** The other side has refused, and said why. */
export class PeerRefusal extends Error {
  override readonly name = 'PeerRefusal';
  readonly code: Refusal['code'];

  constructor({ code, why }: Refusal) {
    super(why);
    this.code = code;
  }
}

export class PeerLink {
  readonly socket: TLSSocket;
  readonly #limits: LinkLimits;
  readonly #reader = new FrameReader(bodyBytesMax.stranger);
  /** Decoded before anybody asked. */
  readonly #early: PeerMessage[] = [];
  #onMessage: ((message: PeerMessage) => void) | undefined;
  #onClose: ((why: Error) => void) | undefined;
  #late: NodeJS.Timeout | undefined;
  #over: Error | undefined;

  constructor(socket: TLSSocket, limits: LinkLimits = linkLimits) {
    this.socket = socket;
    this.#limits = limits;
    socket.setNoDelay(true);
    socket.on('data', (chunk: Buffer) => this.#read(chunk));
    socket.on('error', (error: Error) => this.#end(error));
    socket.on('close', () => this.#end(new Error('the other side has closed the connection')));
  }

  get open(): boolean {
    return this.#over === undefined;
  }

  /** The other side is known now: it may send more at once. */
  trust(): void {
    this.#reader.bodyBytesMax = bodyBytesMax.peer;
  }

  /** From now on; `onClose` is called once, with the reason. */
  listen(onMessage: (message: PeerMessage) => void, onClose: (why: Error) => void): void {
    this.#onMessage = onMessage;
    this.#onClose = onClose;
    for (const message of this.#early.splice(0)) onMessage(message);
    if (this.#over !== undefined) this.#tell(this.#over);
  }

  /** The next message. Rejects when there will be none within `limitMs`. */
  async next(limitMs: number): Promise<PeerMessage> {
    const early = this.#early.shift();
    if (early !== undefined) return early;
    let timer: NodeJS.Timeout | undefined;
    try {
      return await new Promise<PeerMessage>((resolve, reject) => {
        const why = new Error(`the other side said nothing for ${limitMs / 1000} s`);
        timer = setTimeout(() => reject(why), limitMs);
        this.#onMessage = (message) => {
          this.#onMessage = undefined;
          resolve(message);
        };
        this.#onClose = reject;
        if (this.#over !== undefined) reject(this.#over);
      });
    } finally {
      clearTimeout(timer);
      this.#onMessage = undefined;
      this.#onClose = undefined;
    }
  }

  send(message: PeerMessage): void {
    if (this.#over !== undefined) return;
    this.socket.write(encodeMessage(message));
    if (this.socket.writableLength <= this.#limits.unsentBytesMax) return;
    this.#end(new Error('the other side does not take what is sent to it'));
  }

  /** Ends it; `refusal` is sent ahead. */
  close(refusal?: Refusal): void {
    if (this.#over !== undefined) return;
    if (refusal === undefined) return this.#end(new Error('closed here'));
    this.send({ kind: 'refusal', body: refusal });
    this.#finish(new Error(refusal.why));
    this.socket.end();
    setTimeout(() => this.socket.destroy(), lingerMs).unref();
  }

  #read(chunk: Buffer): void {
    if (this.#over !== undefined) return;
    try {
      for (const frame of this.#reader.push(chunk)) {
        this.#frameEnded();
        this.#take(decodeMessage(frame));
        if (!this.open) return;
      }
    } catch (error) {
      if (!(error instanceof FormatError)) throw error;
      return this.#end(error);
    }
    if (this.#reader.waiting) this.#late ??= setTimeout(() => this.#slow(), this.#limits.frameMs);
    else this.#frameEnded();
  }

  #take(message: PeerMessage): void {
    if (message.kind === 'refusal') this.#end(new PeerRefusal(message.body));
    else if (this.#onMessage !== undefined) this.#onMessage(message);
    else if (this.#early.length < earlyMax) this.#early.push(message);
    else this.#end(new FormatError('the other side speaks out of turn'));
  }

  #frameEnded(): void {
    clearTimeout(this.#late);
    this.#late = undefined;
  }

  #slow(): void {
    this.#end(new Error(`a frame took longer than ${this.#limits.frameMs / 1000} s`));
  }

  #end(why: Error): void {
    this.#finish(why);
    this.socket.destroy();
  }

  #finish(why: Error): void {
    if (this.#over !== undefined) return;
    this.#over = why;
    this.#frameEnded();
    this.#tell(why);
  }

  #tell(why: Error): void {
    const listener = this.#onClose;
    this.#onClose = undefined;
    this.#onMessage = undefined;
    listener?.(why);
  }
}
