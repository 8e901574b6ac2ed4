/** Quantiles over the last `capacity` samples: bounded, and exact within the window. */
export interface QuantileSummary {
  readonly last: number;
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
}

export class QuantileWindow {
  readonly #samples: Float64Array;
  #count = 0;

  constructor(capacity: number) {
    this.#samples = new Float64Array(capacity);
  }

  add(sample: number): void {
    this.#samples[this.#count % this.#samples.length] = sample;
    this.#count++;
  }

  get count(): number {
    return this.#count;
  }

  /** All zero while there is no sample. */
  summary(): QuantileSummary {
    const filled = Math.min(this.#count, this.#samples.length);
    if (filled === 0) return { last: 0, p50: 0, p99: 0, max: 0 };
    const sorted = this.#samples.slice(0, filled).sort();
    const at = (share: number): number => sorted[Math.ceil(share * filled) - 1] ?? 0;
    const last = this.#samples[(this.#count - 1) % this.#samples.length] ?? 0;
    return { last, p50: at(0.5), p99: at(0.99), max: at(1) };
  }
}
