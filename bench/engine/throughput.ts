/** redis-benchmark with and without protection, in turns. */
import type { Stage } from '../../test/support/stage.js';
import { waitFor } from '../../test/support/wait-for.js';
import { median, type Figures } from '../figures.js';
import type { DaemonMemory } from './daemon-memory.js';
import { measureLoad, startFilledRedis, type Load } from './redis-load.js';
import type { Sizes } from './sizes.js';

export async function measureThroughput(
  stage: Stage,
  sizes: Sizes,
  figures: Figures,
  memory: DaemonMemory,
  load: Load,
): Promise<void> {
  await stage.startDaemon();
  memory.watch(stage.daemonPid);
  const server = await startFilledRedis(stage, sizes.mib);
  // Writes every key once, so that later runs do the same work, and tells how fast this machine is.
  let guess = await measureLoad(stage, server, load, sizes, 50_000);
  const ratios: number[] = [];
  const intervals: number[] = [];
  const overheads: number[] = [];
  for (let pair = 1; pair <= sizes.pairs; pair++) {
    const without = await measureLoad(stage, server, load, sizes, guess);
    const { epoch } = await stage.protect(server.pid, 'redis');
    // The interval is found while the load runs. What comes before belongs to the start.
    const settling = await measureLoad(stage, server, load, sizes, guess);
    const watch = setInterval(() => {
      void stage.group('redis').then((group) => {
        if (group && group.epoch > epoch) {
          intervals.push(group.interval.ms);
          overheads.push(group.overhead.used);
        }
      });
    }, 500);
    const protectedRate = await measureLoad(stage, server, load, sizes, guess);
    clearInterval(watch);
    const group = await stage.group('redis');
    if (!group || !['protected', 'lagging'].includes(group.state)) {
      throw new Error(`redis is ${group?.state ?? 'gone'}: ${group?.reason ?? ''}`);
    }
    await stage.json('unprotect', 'redis');
    await waitFor(
      async () => (await stage.group('redis')) === undefined,
      30_000,
      'the group does not go',
    );
    ratios.push(protectedRate / without);
    figures.note(
      `${load}, pair ${pair}: ${Math.round(without)} without, ${Math.round(protectedRate)} with` +
        ` (${Math.round(settling)} in the first seconds)`,
    );
    guess = without;
  }
  figures.distribution(`throughput, ${load}: ratio`, '', ratios);
  figures.distribution(`throughput, ${load}: epoch interval that this took`, 'ms', intervals);
  figures.distribution(`throughput, ${load}: overhead as the daemon sees it`, '', overheads);
  figures.atLeast(`throughput, ${load}`, median(ratios), 'of unprotected', 0.93);
}
