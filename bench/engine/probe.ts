/**
 * One connection that asks redis for something, one request at a time, and knows when each answer
 * came: the time without service as a client sees it.
 */
import { createConnection, type Socket } from 'node:net';

export class Probe {
  readonly #socket: Socket;
  #asked = 0;
  #answered = 0;
  #failure: string | undefined;
  #waiting: { readonly number: number; readonly resolve: (atMs: number) => void } | undefined;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.setNoDelay(true);
    socket.on('data', (chunk) => this.#receive(chunk));
    socket.on('error', (error) => (this.#failure ??= error.message));
    socket.on('close', () => (this.#failure ??= 'the connection was closed'));
    this.#ask();
  }

  static connect(port: number): Promise<Probe> {
    return new Promise((resolve, reject) => {
      const socket = createConnection({ host: '127.0.0.1', port });
      socket.once('error', reject);
      socket.once('connect', () => {
        socket.off('error', reject);
        resolve(new Probe(socket));
      });
    });
  }

  get failure(): string | undefined {
    return this.#failure;
  }

  /** Answers so far. */
  get answered(): number {
    return this.#answered;
  }

  /** When the next answer comes, other than one that may have been on its way already, in ms. */
  nextAnswer(): Promise<number> {
    return new Promise((resolve) => {
      this.#waiting = { number: this.#asked + 1, resolve };
    });
  }

  close(): void {
    this.#socket.removeAllListeners('close');
    this.#socket.destroy();
  }

  #ask(): void {
    this.#asked++;
    this.#socket.write('*2\r\n$4\r\nINCR\r\n$5\r\nprobe\r\n');
  }

  #receive(chunk: Buffer): void {
    // One request is on its way, so a whole answer is all that can come.
    const text = chunk.toString('latin1');
    if (!text.endsWith('\r\n')) return;
    const now = performance.now();
    this.#answered++;
    if (text.startsWith('-')) this.#failure ??= text;
    if (this.#waiting && this.#answered >= this.#waiting.number) {
      this.#waiting.resolve(now);
      this.#waiting = undefined;
    }
    this.#ask();
  }
}
