/** How long the primary stands still for an epoch, over numbers of threads. */
import type { Stage } from '../../test/support/stage.js';
import { Victim } from '../../test/support/victim.js';
import { letRun, waitFor } from '../../test/support/wait-for.js';
import { median, type Figures } from '../figures.js';
import type { Sizes } from './sizes.js';

const dirtyPages = 1000;
const epochMs = 100;
// The interval is to stay as asked, so that an epoch has as many dirty pages as the figure says.
const budget = '100%';
const epochsWanted = 100;

export async function measurePause(stage: Stage, sizes: Sizes, figures: Figures): Promise<void> {
  await stage.startDaemon();
  for (const threads of [1, 2, 4, 8]) {
    const rate = Math.round((dirtyPages * 1000) / epochMs / threads);
    const args = [sizes.mib, threads, rate].map(String);
    const victim = await Victim.start(stage, 'memory_load', args);
    if (typeof victim === 'string') throw new Error(victim);
    const name = `threads-${threads}`;
    const pace = ['--epoch', `${epochMs}ms`, '--overhead', budget];
    const first = await stage.protect(victim.pid, name, ...pace);
    const dirty: number[] = [];
    let group = first;
    await waitFor(
      async () => {
        await letRun(epochMs);
        const now = await stage.group(name);
        if (now?.lastEpoch && now.epoch > group.epoch) {
          group = now;
          dirty.push(now.lastEpoch.dirtyPages);
        }
        return group.epoch >= first.epoch + epochsWanted || dirty.length >= epochsWanted;
      },
      300_000,
      () => `${name} committed ${group.epoch - first.epoch} epochs`,
    );
    const { pauseUs, interval, overhead, epochs } = group;
    const gib = group.memory.primaryBytes / 2 ** 30;
    const limit = 1000 + 2 * median(dirty) + 500 * gib;
    figures.distribution(`pause, ${threads} threads: dirty pages of an epoch`, 'pages', dirty);
    figures.note(
      `pause, ${threads} threads: ${JSON.stringify(pauseUs)} us; interval ${interval.ms} ms ` +
        `(${interval.why}); overhead ${overhead.used}; ${JSON.stringify(epochs)}`,
    );
    figures.atMost(`pause, ${threads} threads, p50`, pauseUs.p50, 'us', limit);
    figures.atMost(`pause, ${threads} threads, p99`, pauseUs.p99, 'us', 3 * limit);
    await victim.waitForRounds(1);
    await stage.command('unprotect', name);
    await victim.end();
  }
}
