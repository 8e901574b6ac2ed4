/**
 * The daemon's end of its state file. A file that cannot be read is put aside, never written over;
 * one that cannot be written is tried again until it can. Neither stops the daemon, whose groups
 * live on without it, and both are told to whoever asks for as long as they last.
 */
import { rename } from 'node:fs/promises';
import type { Clock } from '../base/clock.js';
import { describe } from '../base/errors.js';
import type { Log } from '../base/log.js';
import { readState, writeState, type DaemonState } from './state-file.js';

export interface StoreOptions {
  readonly path: string;
  readonly clock: Clock;
  readonly log: Log;
  /** What is to be written, as it is at that moment. */
  readonly current: () => DaemonState;
  readonly retryMs?: number;
}

export class StateStore {
  readonly #options: StoreOptions;
  /** Writes, one after the other; one that waits covers later changes. */
  #writing: Promise<void> = Promise.resolve();
  #writeWaits = false;
  #retry: NodeJS.Timeout | undefined;
  #closed = false;
  /** About what was found at the start: stays until the daemon ends. */
  #unread: string | undefined;
  /** The file could neither be read nor put aside, so it must not be replaced. */
  #blocked = false;
  #unwritten: string | undefined;

  constructor(options: StoreOptions) {
    this.#options = options;
  }

  /** What whoever relies on the groups should know. */
  get warnings(): readonly string[] {
    return [this.#unread, this.#unwritten].filter((one) => one !== undefined);
  }

  get unread(): boolean {
    return this.#unread !== undefined;
  }

  /** Never throws; undefined when there is none, or none that can be read. */
  async load(): Promise<DaemonState | undefined> {
    const { path, log } = this.#options;
    try {
      return await readState(path);
    } catch (error) {
      const reason = describe(error);
      this.#unread = `${reason}; ${await this.#putAside()}`;
      log.error({ path, reason: this.#unread }, 'groups could not be read');
      return undefined;
    }
  }

  /** Soon; `settled` tells when. */
  write(): void {
    if (this.#writeWaits) return;
    this.#writeWaits = true;
    this.#writing = this.#writing.then(() => this.#writeNow());
  }

  /** Resolves when everything until now is in the file, or `warnings` says why not. */
  async settled(): Promise<void> {
    const { path, log } = this.#options;
    const patience = new AbortController();
    const late = this.#options.clock.sleep(patienceMs, patience.signal).then(() => {
      if (patience.signal.aborted || this.#unwritten !== undefined) return;
      this.#unwritten = unwritten(`${path} takes longer than ${patienceMs / 1000} s to write`);
      log.error({ path }, 'groups take long to record');
    });
    await Promise.race([this.#writing, late]);
    patience.abort();
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#retry);
    if (this.#unwritten !== undefined) this.write();
    await this.#writing;
  }

  async #putAside(): Promise<string> {
    const { path, clock } = this.#options;
    const aside = `${path}.unread-${clock.wall().toISOString().replaceAll(':', '')}`;
    try {
      await rename(path, aside);
      return `it was put aside as ${aside}, and the processes in it run on unprotected`;
    } catch (error) {
      this.#blocked = true;
      return (
        `it could not be put aside (${describe(error)}), so no groups are recorded: ` +
        `move it away and start the daemon again`
      );
    }
  }

  async #writeNow(): Promise<void> {
    this.#writeWaits = false;
    if (this.#blocked) return;
    const { path, log, current } = this.#options;
    try {
      await writeState(path, current());
      if (this.#unwritten !== undefined) log.info({ path }, 'groups are recorded again');
      this.#unwritten = undefined;
    } catch (error) {
      const reason = describe(error);
      if (this.#unwritten === undefined)
        log.error({ path, reason }, 'groups could not be recorded');
      this.#unwritten = unwritten(reason);
      this.#retryLater();
    }
  }

  #retryLater(): void {
    if (this.#closed) return;
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => this.write(), this.#options.retryMs ?? retryMsDefault);
    this.#retry.unref();
  }
}

const retryMsDefault = 5000;
/** A write that takes longer is not waited for: storage may hang. */
const patienceMs = 3000;

const unwritten = (reason: string): string =>
  `the groups could not be recorded (${reason}): a daemon that is started after this one would ` +
  `not know the latest changes; it is tried again`;
