/**
 * A client that never makes a second connection: it sends numbered requests, several on the way at
 * a time, and checks that each is answered exactly once, in order, with the right thing. It notes
 * how long it went without an answer.
 */
import { createConnection, type Socket } from 'node:net';

/** How one kind of server is talked to. */
export interface Protocol {
  readonly name: string;
  /** Sent once, before the numbered requests; its answers are the first ones. */
  readonly prelude?: readonly string[];
  encode(number: number): string;
  /** The first whole answer in the text, and how many characters it takes. */
  decode(text: string): { readonly answer: string; readonly length: number } | undefined;
  /** What the answer to request `number` (1, 2, 3 ...) must be. */
  expected(number: number): string;
}

export interface RecorderOptions {
  readonly port: number;
  readonly protocol: Protocol;
  /** Requests that are on the way at a time. */
  readonly depth?: number;
  /** Pause between an answer and the next request, in ms; 0 is none. */
  readonly paceMs?: number;
}

export class Recorder {
  readonly protocol: Protocol;
  readonly #socket: Socket;
  readonly #depth: number;
  readonly #paceMs: number;
  #text = '';
  #prelude: number;
  #sent = 0;
  #answered = 0;
  #lastMs = performance.now();
  #gapMs = 0;
  #error: string | undefined;
  #stopping = false;
  #idle: (() => void) | undefined;

  private constructor(socket: Socket, options: RecorderOptions) {
    this.protocol = options.protocol;
    this.#socket = socket;
    this.#depth = options.depth ?? 4;
    this.#paceMs = options.paceMs ?? 0;
    this.#prelude = options.protocol.prelude?.length ?? 0;
    socket.setNoDelay(true);
    socket.setEncoding('latin1');
    socket.on('data', (chunk: string) => this.#receive(chunk));
    socket.on('error', (error) => this.#fail(error.message));
    socket.on('close', () => this.#fail('the connection was closed'));
    for (const line of options.protocol.prelude ?? []) socket.write(line);
  }

  static async connect(options: RecorderOptions): Promise<Recorder> {
    const socket = await new Promise<Socket>((resolve, reject) => {
      const made = createConnection({ host: '127.0.0.1', port: options.port });
      made.once('error', reject);
      made.once('connect', () => {
        made.off('error', reject);
        resolve(made);
      });
    });
    const recorder = new Recorder(socket, options);
    recorder.#fill();
    return recorder;
  }

  get answered(): number {
    return this.#answered;
  }

  /** What went wrong first; undefined while nothing did. */
  get error(): string | undefined {
    return this.#error;
  }

  /** The longest time without an answer since the last call, in ms; counts the present one. */
  takeGapMs(): number {
    const gap = Math.max(this.#gapMs, performance.now() - this.#lastMs);
    this.#gapMs = 0;
    return gap;
  }

  /** Sends nothing more; resolves when all is answered or the connection is lost. */
  async stop(): Promise<void> {
    this.#stopping = true;
    if (this.#answered < this.#sent && this.#error === undefined) {
      await new Promise<void>((resolve) => (this.#idle = resolve));
    }
    this.close();
  }

  close(): void {
    this.#error ??= this.#stopping ? undefined : 'closed by the test';
    this.#socket.removeAllListeners('close');
    this.#socket.destroy();
  }

  #fill(): void {
    while (this.#prelude === 0 && !this.#stopping && this.#sent - this.#answered < this.#depth) {
      this.#sent++;
      this.#socket.write(this.protocol.encode(this.#sent));
    }
    if (this.#sent === this.#answered) this.#idle?.();
  }

  #receive(chunk: string): void {
    this.#text += chunk;
    for (;;) {
      const decoded = this.protocol.decode(this.#text);
      if (decoded === undefined) break;
      this.#text = this.#text.slice(decoded.length);
      this.#take(decoded.answer);
    }
    if (this.#paceMs > 0) setTimeout(() => this.#fill(), this.#paceMs);
    else this.#fill();
  }

  #take(answer: string): void {
    const now = performance.now();
    this.#gapMs = Math.max(this.#gapMs, now - this.#lastMs);
    this.#lastMs = now;
    if (this.#prelude > 0) {
      this.#prelude--;
      return;
    }
    const number = ++this.#answered;
    const expected = this.protocol.expected(number);
    if (number > this.#sent) this.#fail(`answer ${number} was never asked for: ${answer}`);
    else if (answer !== expected) {
      this.#fail(`request ${number} was answered ${answer.slice(0, 100)}, not ${expected}`);
    }
  }

  #fail(message: string): void {
    this.#error ??= `${this.protocol.name}: ${message} (${this.#answered} answered)`;
    this.#idle?.();
  }
}

function line(text: string): { answer: string; length: number } | undefined {
  const end = text.indexOf('\r\n');
  return end < 0 ? undefined : { answer: text.slice(0, end), length: end + 2 };
}

/** INCR of a key of its own: lost and doubled requests both show in the next answer. */
export function redisProtocol(key: string): Protocol {
  const request = `*2\r\n$4\r\nINCR\r\n$${key.length}\r\n${key}\r\n`;
  return {
    name: `redis ${key}`,
    encode: () => request,
    decode: line,
    expected: (number) => `:${number}`,
  };
}

export function memcachedProtocol(key: string): Protocol {
  return {
    name: `memcached ${key}`,
    prelude: [`set ${key} 0 0 1\r\n0\r\n`],
    encode: () => `incr ${key} 1\r\n`,
    decode: line,
    expected: (number) => String(number),
  };
}

/** The server must answer with what stands behind `n=`. */
export function httpProtocol(name: string): Protocol {
  return {
    name: `HTTP ${name}`,
    encode: (number) => `GET /echo?n=${number} HTTP/1.1\r\nHost: localhost\r\n\r\n`,
    decode(text) {
      const head = text.indexOf('\r\n\r\n');
      if (head < 0) return undefined;
      const length = Number(/\r\ncontent-length: *(\d+)/i.exec(text.slice(0, head))?.[1] ?? 'NaN');
      if (Number.isNaN(length)) return { answer: text.slice(0, head), length: text.length };
      if (text.length < head + 4 + length) return undefined;
      return { answer: text.slice(head + 4, head + 4 + length), length: head + 4 + length };
    },
    expected: (number) => String(number),
  };
}

/** A line `N` is answered with a line `N`. */
export function echoProtocol(name: string): Protocol {
  return {
    name,
    encode: (number) => `${number}\r\n`,
    decode: line,
    expected: (number) => String(number),
  };
}
