/** What the table and the plots in docs/ are made of. */
import type { RamStatus } from '../../src/api/schema.js';

export interface Results {
  readonly ram: { share: number; percent: number; ram: RamStatus; full: RamStatus }[];
  /** Commands a second in each tenth of a second after the promotion. */
  readonly zipf: { name: string; beforePerSecond: number; perSecond: readonly number[] }[];
}

export const noResults = (): Results => ({ ram: [], zipf: [] });
