/** What belongs together, and is run by one name on the command line. */
import type { Stage } from '../test/support/stage.js';

export interface Measurement {
  readonly name: string;
  readonly run: (stage: Stage) => Promise<void>;
}

export interface Suite {
  readonly sizes: { readonly only: readonly string[] };
  readonly measurements: readonly Measurement[];
  afterEach(): Promise<void>;
  /** `done`: names of the measurements. */
  atTheEnd(done: readonly string[]): Promise<void>;
}
