/**
 * One client that writes numbered entries to a list of its own, several at a time in the pipeline.
 * RPUSH answers with the length of the list: the n-th answer must be n, so that a write that was
 * lost, or carried out twice, shows at once.
 */
import type { RedisConnection } from './resp.js';

const pipelineDepth = 16;
const checkChunk = 10_000;

export interface WriterReport {
  readonly acknowledged: number;
  /** Longest time without an answer, since the last call of `restartGap`. */
  readonly longestGapMs: number;
  readonly errors: readonly string[];
}

export class Writer {
  readonly #connection: RedisConnection;
  readonly #key: string;
  #sent = 0;
  #acknowledged = 0;
  #lastAnswerMs = performance.now();
  #longestGapMs = 0;
  #stopping = false;
  #running: Promise<unknown> = Promise.resolve();
  readonly #errors: string[] = [];

  constructor(connection: RedisConnection, key: string) {
    this.#connection = connection;
    this.#key = key;
  }

  start(): void {
    this.#lastAnswerMs = performance.now();
    this.#running = Promise.all(Array.from({ length: pipelineDepth }, () => this.#lane()));
  }

  /** Resolves when every write that was sent has been answered, or the connection is lost. */
  async stop(): Promise<void> {
    this.#stopping = true;
    await this.#running;
  }

  restartGap(): void {
    this.#longestGapMs = 0;
  }

  get acknowledged(): number {
    return this.#acknowledged;
  }

  get lost(): boolean {
    return this.#errors.length > 0;
  }

  report(): WriterReport {
    return {
      acknowledged: this.#acknowledged,
      longestGapMs: this.#longestGapMs,
      errors: this.#errors,
    };
  }

  /** Reads the list back over a connection and says what of it is not as acknowledged. */
  async verify(connection: RedisConnection): Promise<readonly string[]> {
    const problems: string[] = [];
    const length = await connection.send('LLEN', this.#key);
    if (length !== this.#acknowledged) {
      problems.push(`${this.#key}: ${this.#acknowledged} acknowledged, ${String(length)} there`);
    }
    for (let from = 0; from < this.#acknowledged; from += checkChunk) {
      const to = String(from + checkChunk - 1);
      const entries = await connection.send('LRANGE', this.#key, String(from), to);
      if (!Array.isArray(entries)) return [...problems, `${this.#key} cannot be read`];
      const wrong = entries.findIndex((entry, i) => entry !== String(from + i + 1));
      if (wrong >= 0) problems.push(`${this.#key}: entry ${from + wrong + 1} is not what was sent`);
    }
    return problems;
  }

  async #lane(): Promise<void> {
    while (!this.#stopping && this.#errors.length === 0) {
      const number = ++this.#sent;
      try {
        const answer = await this.#connection.send('RPUSH', this.#key, String(number));
        this.#answered(number, answer);
      } catch (error) {
        this.#errors.push(`write ${number}: ${error instanceof Error ? error.message : 'lost'}`);
      }
    }
  }

  #answered(number: number, answer: unknown): void {
    const now = performance.now();
    this.#longestGapMs = Math.max(this.#longestGapMs, now - this.#lastAnswerMs);
    this.#lastAnswerMs = now;
    if (answer === number) this.#acknowledged++;
    else this.#errors.push(`write ${number} was answered with ${String(answer)}`);
  }
}
