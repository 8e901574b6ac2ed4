/** `replpage evict`: turns of paging that make a replica as cold as it may be, then the usual ones. */
import { deferred, type Deferred } from '../base/deferred.js';
import { ReplicationError } from '../base/errors.js';
import type { PagingOrder, PagingReport } from '../native/group.js';

/** Not touched in the last sample; what was, would only come back. */
const evictAge = 1;
/** Turns in which nothing leaves before what is left counts as staying. */
const idleTurnsMax = 100;
/** So many samples, so many turns apart, tell what is in use at present. */
const samplesWanted = 2;
const turnsBetween = 30;
const pageBytes = 4096;

const nothing: PagingOrder = {
  evictAge: 0,
  evictPagesMax: 0,
  bringBackAge: 0,
  bringBackPagesMax: 0,
};

export interface Evicted {
  /** That left the replica's RAM. */
  readonly evictedBytes: number;
  readonly residentBytes: number;
  readonly coldBytes: number;
}

/** What was asked for of one group, by however many at the same time. */
export class Evictions {
  #asked: Deferred<Evicted> | undefined;
  #evictedBefore: number | undefined;
  #moved = -1;
  #idleTurns = 0;
  #samples = 0;
  #turns = 0;

  ask(): Promise<Evicted> {
    if (this.#asked === undefined) {
      this.#evictedBefore = undefined;
      this.#moved = -1;
      this.#idleTurns = 0;
      this.#samples = 0;
      this.#turns = 0;
    }
    this.#asked ??= deferred();
    return this.#asked.promise;
  }

  /** What to do next; undefined: nothing is asked for, or all was done. */
  order(report: PagingReport): PagingOrder | undefined {
    if (this.#asked === undefined) return undefined;
    this.#evictedBefore ??= report.evictedBytes;
    if (report.store !== 'ok' && report.store !== 'opening') {
      this.fail(`pages stay in RAM: ${report.trouble === '' ? report.store : report.trouble}`);
      return undefined;
    }
    if (this.#samples < samplesWanted) return this.#sample();
    const pages = report.ages.slice(evictAge).reduce((sum, count) => sum + count, 0);
    const moved = report.writtenBytes + report.evictedBytes;
    this.#idleTurns = moved === this.#moved ? this.#idleTurns + 1 : 0;
    this.#moved = moved;
    const over = pages === 0 && report.pendingBytes === 0;
    if (over || this.#idleTurns > idleTurnsMax) {
      this.#resolve(report, this.#evictedBefore);
      return undefined;
    }
    const evictPagesMax = Math.max(pages, Math.ceil(report.pendingBytes / pageBytes));
    return { ...nothing, evictAge, evictPagesMax };
  }

  #sample(): PagingOrder {
    if (this.#turns++ % turnsBetween !== 0) return nothing;
    this.#samples++;
    return { ...nothing, sampleNow: true };
  }

  /** Nothing more will leave. */
  fail(why: string): void {
    this.#asked?.reject(new ReplicationError('ERR_STORE', why));
    this.#asked = undefined;
  }

  #resolve({ evictedBytes, residentBytes, coldBytes }: PagingReport, before: number): void {
    this.#asked?.resolve({ evictedBytes: evictedBytes - before, residentBytes, coldBytes });
    this.#asked = undefined;
  }
}
