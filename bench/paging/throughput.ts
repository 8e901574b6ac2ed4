/** What paging of the replica costs the primary, beside a replica that holds everything. */
import type { Stage } from '../../test/support/stage.js';
import { letRun } from '../../test/support/wait-for.js';
import { median, type Figures } from '../figures.js';
import { coldAfter, settle, startWorking, withStore } from './paged.js';
import type { Sizes } from './sizes.js';

const share = 30;
const target = 0.98;
const name = 'working';

export async function measureThroughput(
  stage: Stage,
  sizes: Sizes,
  figures: Figures,
): Promise<void> {
  await withStore(stage, sizes, async () => {
    const program = await startWorking(stage, [sizes.mib, share]);
    const rate = async (flags: readonly string[], cold: number): Promise<number> => {
      await stage.protect(program.pid, name, ...flags);
      await settle(stage, name, cold);
      const [before = 0] = await program.counters();
      const start = performance.now();
      await letRun(sizes.seconds * 1000);
      const [after = 0] = await program.counters();
      const passedS = (performance.now() - start) / 1000;
      await stage.unprotect(name);
      return (after - before) / passedS;
    };
    const ratios: number[] = [];
    const full = () => rate(['--ram', 'all'], 0);
    let before = await full();
    for (let pair = 1; pair <= sizes.pairs; pair++) {
      const paged = await rate(['--ram', 'hot', ...coldAfter], 0.97 * (1 - share / 100));
      const after = await full();
      ratios.push((2 * paged) / (before + after));
      const rates = [before, paged, after].map((each) => Math.round(each / 1000)).join(', ');
      figures.note(`pair ${pair}: ${rates} thousand touches a second (full, paged, full)`);
      before = after;
    }
    figures.distribution('throughput with paging: ratio', '', ratios);
    figures.atLeast('throughput with paging', median(ratios), 'of a full replica', target);
    await stage.endPid(program.pid);
  });
}
