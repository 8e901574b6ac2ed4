/** QEMU's own language, for what only it can do to a node: stop, continue, save, cut cables. */
import { createConnection, type Socket } from 'node:net';
import { BedError } from './bed-error.js';
import { connectTo, Lines } from './lines.js';
import { patiently } from './patience.js';

interface Answer {
  readonly return?: unknown;
  readonly error?: { readonly class: string; readonly desc: string };
  readonly event?: string;
  readonly QMP?: unknown;
}

const answerMs = patiently(60_000);

export class Qmp {
  readonly #socket: Socket;
  readonly #lines: Lines;

  private constructor(socket: Socket) {
    this.#socket = socket;
    this.#lines = new Lines(socket);
  }

  /** @throws BedError when nobody answers there */
  static async connect(socketPath: string): Promise<Qmp> {
    const qmp = new Qmp(await connectTo(() => createConnection(socketPath), socketPath));
    await qmp.#answer('the greeting');
    await qmp.execute('qmp_capabilities');
    return qmp;
  }

  /** @throws BedError with QEMU's own words when it refuses */
  async execute<T = unknown>(name: string, args: Record<string, unknown> = {}): Promise<T> {
    this.#socket.write(`${JSON.stringify({ execute: name, arguments: args })}\n`);
    const { error, return: value } = await this.#answer(name);
    if (error) throw new BedError(`QEMU refuses ${name} ${JSON.stringify(args)}: ${error.desc}`);
    return value as T;
  }

  close(): void {
    this.#socket.destroy();
  }

  async #answer(what: string): Promise<Answer> {
    for (;;) {
      const line = await this.#lines.next(answerMs);
      if (line === undefined) throw new BedError(`QEMU does not answer to ${what}`);
      const answer = JSON.parse(line) as Answer;
      if (answer.event === undefined) return answer;
    }
  }
}
