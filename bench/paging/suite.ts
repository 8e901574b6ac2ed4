/** Everything that is measured of replicas that leave a part of their memory in the page store. */
import path from 'node:path';
import { root } from '../../test/support/repository.js';
import type { Figures } from '../figures.js';
import type { Suite } from '../suite.js';
import { writeDocument } from './document.js';
import { measureStore } from './faults.js';
import { measureAnswer, measurePromotion } from './promotion.js';
import { measureRam } from './ram.js';
import { noResults } from './results.js';
import { readSizes, usage } from './sizes.js';
import { measureThroughput } from './throughput.js';
import { measureZipf } from './zipf.js';

export { usage as pagingUsage };

export function paging(options: readonly string[], figures: Figures, machine: string): Suite {
  const sizes = readSizes(options);
  const results = noResults();
  return {
    sizes,
    measurements: [
      { name: 'ram', run: (stage) => measureRam(stage, sizes, figures, results) },
      { name: 'throughput', run: (stage) => measureThroughput(stage, sizes, figures) },
      { name: 'promotion', run: (stage) => measurePromotion(stage, sizes, figures) },
      { name: 'answer', run: (stage) => measureAnswer(stage, sizes, figures) },
      { name: 'faults', run: (stage) => measureStore(stage, sizes, figures) },
      { name: 'zipf', run: (stage) => measureZipf(stage, sizes, figures, results) },
    ],
    afterEach: () => Promise.resolve(),
    atTheEnd: async () => {
      if (sizes.docs === '') return;
      const text = `${machine}; ${sizes.mib} MiB, what is killed and redis ${sizes.mibKilled} MiB.`;
      const kept = path.join(root, 'bench/build/paging-figures.json');
      await writeDocument(sizes.docs, kept, { figures: figures.all, results }, text);
    },
  };
}
