/** Samples, what is said of them, and the figures that are held against a target. */

export interface Figure {
  readonly name: string;
  readonly value: number;
  readonly unit: string;
  /** For people: '<= 20'. */
  readonly target: string;
  readonly ok: boolean;
}

const round = (value: number): number => Number(value.toPrecision(5));

/** The smallest sample that `share` of all samples do not exceed. */
export function quantile(samples: readonly number[], share: number): number {
  const sorted = [...samples].sort((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? Number.NaN;
}

export const median = (samples: readonly number[]): number => quantile(samples, 0.5);

/** Collects figures, and prints distributions as they come in. */
export class Figures {
  readonly #figures: Figure[] = [];

  /** One line: how many samples, and how they spread. */
  distribution(name: string, unit: string, samples: readonly number[]): void {
    const shares = [0, 0.1, 0.5, 0.9, 0.99, 1] as const;
    const parts = shares.map((share) => {
      const label = share === 0 ? 'min' : share === 1 ? 'max' : `p${share * 100}`;
      return `${label} ${round(quantile(samples, share))}`;
    });
    console.log(`# ${name}: ${samples.length} samples, ${parts.join('  ')} ${unit}`);
  }

  note(text: string): void {
    console.log(`# ${text}`);
  }

  atMost(name: string, value: number, unit: string, limit: number): void {
    this.#add({ name, value, unit, target: `<= ${round(limit)}`, ok: value <= limit });
  }

  atLeast(name: string, value: number, unit: string, limit: number): void {
    this.#add({ name, value, unit, target: `>= ${round(limit)}`, ok: value >= limit });
  }

  /** For a look: there is no target. */
  shown(name: string, value: number, unit: string): void {
    this.#add({ name, value, unit, target: 'none', ok: !Number.isNaN(value) });
  }

  get all(): readonly Figure[] {
    return this.#figures;
  }

  /** A figure that could not be had counts as missed. */
  failed(name: string, error: unknown): void {
    this.note(`${name} FAILED: ${error instanceof Error ? error.message : String(error)}`);
    this.#add({ name, value: Number.NaN, unit: '', target: 'a figure', ok: false });
  }

  /** One JSON object a line. True when every target was met. */
  print(): boolean {
    for (const figure of this.#figures) console.log(JSON.stringify(figure));
    return this.#figures.length > 0 && this.#figures.every(({ ok }) => ok);
  }

  #add(figure: Figure): void {
    this.#figures.push({ ...figure, value: round(figure.value) });
    const verdict = figure.ok ? 'met' : 'MISSED';
    const { name, value, unit, target } = figure;
    console.log(`# => ${name}: ${round(value)} ${unit} (${target}) ${verdict}`);
  }
}
