/**
 * Keeps cluster.json as the node is: one write after the other, each of the newest record. What must
 * be durable before it is told waits for its write; what was heard from others is tried again.
 */
import type { Clock } from '../base/clock.js';
import { describe } from '../base/errors.js';
import type { Log } from '../base/log.js';
import { writeCluster, type ClusterRecord } from './cluster-file.js';

const retryMs = 5000;

export class ClusterRecordWriter {
  readonly #path: string;
  readonly #clock: Clock;
  readonly #log: Log;
  #record: ClusterRecord;
  #writing: Promise<void> = Promise.resolve();
  readonly #closed = new AbortController();
  #retrying = false;
  #trouble: string | undefined;

  constructor(path: string, record: ClusterRecord, { clock, log }: { clock: Clock; log: Log }) {
    this.#path = path;
    this.#record = record;
    this.#clock = clock;
    this.#log = log;
  }

  /** As it is in memory. */
  get record(): ClusterRecord {
    return this.#record;
  }

  /** Why the file is behind; undefined when it is not. */
  get trouble(): string | undefined {
    return this.#trouble;
  }

  /** Durable first: rejects, and leaves the record as it was, when it cannot be written. */
  commit(change: (record: ClusterRecord) => ClusterRecord): Promise<void> {
    const done = this.#writing.then(async () => {
      const next = change(this.#record);
      await this.#write(next);
      // What was heard meanwhile is not lost: it is applied to what is there by then.
      this.#record = change(this.#record);
    });
    this.#writing = done.catch(() => undefined);
    return done;
  }

  /** Holds at once; written soon, and again until it can be. */
  change(change: (record: ClusterRecord) => ClusterRecord): void {
    this.#record = change(this.#record);
    this.#writing = this.#writing
      .then(() => this.#write(this.#record))
      .catch(() => void this.#retryLater());
  }

  async close(): Promise<void> {
    this.#closed.abort();
    if (this.#trouble !== undefined) this.change((record) => record);
    await this.#writing;
  }

  async #write(record: ClusterRecord): Promise<void> {
    try {
      await writeCluster(this.#path, record);
      this.#trouble = undefined;
    } catch (error) {
      const why = `${this.#path} cannot be written: ${describe(error)}`;
      if (this.#trouble !== why) this.#log.error({ reason: why }, 'cluster not recorded');
      this.#trouble = why;
      throw error;
    }
  }

  async #retryLater(): Promise<void> {
    if (this.#retrying || this.#closed.signal.aborted) return;
    this.#retrying = true;
    await this.#clock.sleep(retryMs, this.#closed.signal);
    this.#retrying = false;
    if (!this.#closed.signal.aborted) this.change((record) => record);
  }
}
