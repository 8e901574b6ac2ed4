/** Sockets that carry lines of text. */
import type { Socket } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import { BedError, reasonOf } from './bed-error.js';
import { goOn } from './interruption.js';
import { patiently } from './patience.js';

const connectMs = patiently(4000);
/** While somebody listens who has connections waiting: QEMU, busy, or with another command. */
const busyMs = patiently(60_000);

function tryConnect(open: () => Socket): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = open();
    socket.once('error', reject);
    socket.once('connect', () => {
      socket.off('error', reject);
      // A lost connection shows as the end of its lines.
      socket.on('error', () => undefined);
      resolve(socket);
    });
  });
}

/**
 * Tries for a few seconds, since QEMU makes its sockets a moment after it was started; longer while
 * it has not taken in those who came before.
 */
export async function connectTo(
  open: () => Socket,
  name: string,
  limitMs = Infinity,
): Promise<Socket> {
  for (const start = Date.now(); ; await pause(20)) {
    goOn();
    try {
      return await tryConnect(open);
    } catch (error) {
      const busy = (error as NodeJS.ErrnoException).code === 'EAGAIN';
      if (Date.now() - start < Math.min(busy ? busyMs : connectMs, limitMs)) continue;
      const why = busy ? 'another command uses it' : reasonOf(error);
      throw new BedError(`nobody answers at ${name}: ${why}`);
    }
  }
}

/** The lines that come in, one at a time, in order. */
export class Lines {
  readonly #waiting: string[] = [];
  #text = '';
  #ended = false;
  #wake: (() => void) | undefined;

  constructor(socket: Socket) {
    socket.setEncoding('utf8');
    socket.on('data', (chunk: string) => {
      const lines = (this.#text + chunk).split('\n');
      this.#text = lines.pop() ?? '';
      this.#waiting.push(...lines.filter((line) => line.trim() !== ''));
      this.#wake?.();
    });
    socket.on('close', () => {
      this.#ended = true;
      this.#wake?.();
    });
  }

  /** Undefined at the end, and when none comes in `limitMs`. */
  async next(limitMs: number): Promise<string | undefined> {
    if (this.#waiting.length === 0 && !this.#ended) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, limitMs);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
      this.#wake = undefined;
    }
    return this.#waiting.shift();
  }

  get ended(): boolean {
    return this.#ended && this.#waiting.length === 0;
  }
}
