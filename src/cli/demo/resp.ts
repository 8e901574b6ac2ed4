/** A small pipelining Redis client: RESP2 over one TCP connection that is never made again. */
import { createConnection, type Socket } from 'node:net';

export type Reply = string | number | null | readonly Reply[];

/** Cuts a byte stream into replies; an incomplete one waits for more bytes. */
export class ReplyParser {
  #buffer: Buffer = Buffer.alloc(0);

  push(chunk: Buffer): (Reply | Error)[] {
    this.#buffer = this.#buffer.length === 0 ? chunk : Buffer.concat([this.#buffer, chunk]);
    const replies: (Reply | Error)[] = [];
    let at = 0;
    for (;;) {
      const parsed = parseReply(this.#buffer, at);
      if (parsed === undefined) break;
      replies.push(parsed.reply);
      at = parsed.next;
    }
    this.#buffer = this.#buffer.subarray(at);
    return replies;
  }
}

interface Parsed {
  readonly reply: Reply | Error;
  readonly next: number;
}

function parseReply(buffer: Buffer, at: number): Parsed | undefined {
  const end = buffer.indexOf('\r\n', at);
  if (end < 0) return undefined;
  const line = buffer.toString('utf8', at + 1, end);
  const next = end + 2;
  switch (String.fromCharCode(buffer[at] ?? 0)) {
    case '+':
      return { reply: line, next };
    case '-':
      return { reply: new Error(line), next };
    case ':':
      return { reply: Number(line), next };
    case '$':
      return parseBulk(buffer, next, Number(line));
    case '*':
      return parseList(buffer, next, Number(line));
    default:
      throw new Error(`not a Redis answer: ${JSON.stringify(line.slice(0, 40))}`);
  }
}

function parseBulk(buffer: Buffer, at: number, length: number): Parsed | undefined {
  if (length < 0) return { reply: null, next: at };
  if (buffer.length < at + length + 2) return undefined;
  return { reply: buffer.toString('utf8', at, at + length), next: at + length + 2 };
}

function parseList(buffer: Buffer, start: number, count: number): Parsed | undefined {
  const items: Reply[] = [];
  let at = start;
  for (let i = 0; i < count; i++) {
    const parsed = parseReply(buffer, at);
    if (parsed === undefined) return undefined;
    if (parsed.reply instanceof Error) return { reply: parsed.reply, next: parsed.next };
    items.push(parsed.reply);
    at = parsed.next;
  }
  return { reply: items, next: at };
}

export function encodeCommand(words: readonly string[]): string {
  const parts = words.map((word) => `$${Buffer.byteLength(word)}\r\n${word}\r\n`);
  return `*${words.length}\r\n${parts.join('')}`;
}

interface Waiting {
  readonly resolve: (reply: Reply) => void;
  readonly reject: (error: Error) => void;
}

export class RedisConnection {
  readonly #socket: Socket;
  readonly #waiting: Waiting[] = [];
  readonly #parser = new ReplyParser();
  #broken: Error | undefined;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.setNoDelay(true);
    socket.on('data', (chunk) => this.#receive(chunk));
    socket.on('error', (error) => this.#break(error));
    socket.on('close', () => this.#break(new Error('the connection was closed')));
  }

  static connect(port: number): Promise<RedisConnection> {
    return new Promise((resolve, reject) => {
      const socket = createConnection({ host: '127.0.0.1', port });
      socket.once('error', reject);
      socket.once('connect', () => {
        socket.off('error', reject);
        resolve(new RedisConnection(socket));
      });
    });
  }

  /** Commands may be sent before earlier answers came. Rejects when the connection is lost. */
  send(...words: readonly string[]): Promise<Reply> {
    if (this.#broken) return Promise.reject(this.#broken);
    return new Promise((resolve, reject) => {
      this.#waiting.push({ resolve, reject });
      this.#socket.write(encodeCommand(words));
    });
  }

  close(): void {
    this.#broken ??= new Error('closed');
    this.#socket.destroy();
  }

  #receive(chunk: Buffer): void {
    for (const reply of this.#parser.push(chunk)) {
      const waiting = this.#waiting.shift();
      if (waiting === undefined) {
        this.#break(new Error('an answer came that nobody asked for'));
        return;
      }
      if (reply instanceof Error) waiting.reject(reply);
      else waiting.resolve(reply);
    }
  }

  #break(error: Error): void {
    this.#broken ??= error;
    for (const waiting of this.#waiting.splice(0)) waiting.reject(this.#broken);
    this.#socket.destroy();
  }
}
