/** The host's end of the agent: guest/agent.c has the language. */
import { createConnection, type Socket } from 'node:net';
import { BedError } from './bed-error.js';
import { connectTo, Lines } from './lines.js';

export interface Outcome {
  /** As a shell gives it: 128 and the signal's number for a death by signal. */
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Sees output as it comes. */
export type Listener = (stream: 'stdout' | 'stderr', chunk: Buffer) => void;

interface Running {
  readonly out: Buffer[];
  readonly err: Buffer[];
  readonly listener: Listener | undefined;
  readonly settle: (status: number | undefined) => void;
}

const pollMs = 500;

export class Agent {
  readonly #socket: Socket;
  readonly #lines: Lines;
  readonly #running = new Map<number, Running>();
  #next = 1;

  private constructor(socket: Socket) {
    this.#socket = socket;
    this.#lines = new Lines(socket);
  }

  /** Undefined when the node does not answer within `limitMs`. */
  static async connect(socketPath: string, limitMs: number): Promise<Agent | undefined> {
    const agent = new Agent(
      await connectTo(() => createConnection(socketPath), socketPath, limitMs),
    );
    const number = 1 + Math.floor(Math.random() * 1e9);
    for (const last = Date.now() + limitMs; Date.now() < last && !agent.#lines.ended;) {
      // Asked again and again: what is said before the agent listens may be lost.
      agent.#socket.write(`\nhello ${number}\n`);
      const end = Math.min(last, Date.now() + pollMs);
      for (let left = pollMs; left > 0; left = end - Date.now()) {
        if ((await agent.#lines.next(left)) === `hello ${number}`) {
          void agent.#listen();
          return agent;
        }
      }
    }
    agent.close();
    return undefined;
  }

  /**
   * Runs a script in the node's /bin/sh.
   * @throws BedError when it takes longer than `limitMs`, or the node is gone
   */
  async run(script: string, limitMs: number, listener?: Listener): Promise<Outcome> {
    const number = this.#next++;
    const out: Buffer[] = [];
    const err: Buffer[] = [];
    let timer: NodeJS.Timeout | undefined;
    const status = await new Promise<number | undefined>((settle) => {
      this.#running.set(number, { out, err, listener, settle });
      timer = setTimeout(() => settle(undefined), limitMs);
      if (this.#lines.ended) settle(undefined);
      else this.#socket.write(`run ${number} ${Buffer.from(script).toString('base64')}\n`);
    });
    clearTimeout(timer);
    this.#running.delete(number);
    const stdout = Buffer.concat(out).toString();
    const stderr = Buffer.concat(err).toString();
    if (status !== undefined) return { status, stdout, stderr };
    if (!this.#lines.ended) this.#socket.write(`kill ${number} 9\n`);
    const why = this.#lines.ended ? 'the node is gone' : `no end after ${limitMs} ms`;
    throw new BedError(`${why}: ${script.slice(0, 200)}\n${stdout}${stderr}`.slice(0, 4000));
  }

  get connected(): boolean {
    return !this.#lines.ended;
  }

  close(): void {
    this.#socket.destroy();
  }

  async #listen(): Promise<void> {
    while (!this.#lines.ended) {
      const line = await this.#lines.next(60_000);
      if (line !== undefined) this.#take(line);
    }
    for (const { settle } of this.#running.values()) settle(undefined);
  }

  #take(line: string): void {
    const [kind = '', number = '', rest = ''] = line.split(' ');
    const running = this.#running.get(Number(number));
    if (!running) return;
    if (kind === 'end') {
      running.settle(Number(rest));
      return;
    }
    const chunk = Buffer.from(rest, 'base64');
    (kind === 'out' ? running.out : running.err).push(chunk);
    running.listener?.(kind === 'out' ? 'stdout' : 'stderr', chunk);
  }
}
