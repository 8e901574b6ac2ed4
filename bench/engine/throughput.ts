/**
 * redis-benchmark with and without protection, in turns. The load never stops: what is compared are
 * windows of it, and one with protection holds whole epochs, taken at an interval that has settled.
 */
import type { GroupStatus } from '../../src/api/schema.js';
import type { Server } from '../../test/support/servers.js';
import type { Stage } from '../../test/support/stage.js';
import { letRun, waitFor } from '../../test/support/wait-for.js';
import { median, type Figures } from '../figures.js';
import type { DaemonMemory } from './daemon-memory.js';
import { commandsOf, endChild, startFilledRedis, startLoad, type Load } from './redis-load.js';
import type { Sizes } from './sizes.js';

const settledEpochs = 3;
const settledRatio = 1.5;
const settleMsMax = 300_000;
const windowEpochs = 2;
const target = 0.93;
// Rarely, since the answers cost what is measured.
const lookMs = 100;

/** Commands a second while `wait` waits. */
async function rateWhile(
  stage: Stage,
  server: Server,
  wait: () => Promise<unknown>,
): Promise<number> {
  const before = await commandsOf(stage, server);
  const start = performance.now();
  await wait();
  const commands = (await commandsOf(stage, server)) - before;
  return (commands * 1000) / (performance.now() - start);
}

async function running(stage: Stage): Promise<GroupStatus> {
  const group = await stage.group('redis');
  if (!group || !['protected', 'lagging'].includes(group.state)) {
    throw new Error(`redis is ${group?.state ?? 'gone'}: ${group?.reason ?? ''}`);
  }
  return group;
}

async function nextEpoch(stage: Stage): Promise<GroupStatus> {
  const { epoch } = await running(stage);
  return waitFor(
    async () => {
      await letRun(lookMs);
      const group = await running(stage);
      return group.epoch > epoch && group;
    },
    settleMsMax,
    'no epoch is committed',
  );
}

/** The interval is found while the load runs: until two in a row are alike. */
async function settle(stage: Stage): Promise<void> {
  const deadline = performance.now() + settleMsMax;
  let last = Number.NaN;
  for (let epochs = 1; performance.now() < deadline; epochs++) {
    const { interval } = await nextEpoch(stage);
    const ratio = interval.ms / last;
    last = interval.ms;
    if (epochs > settledEpochs && ratio < settledRatio && ratio > 1 / settledRatio) return;
  }
  throw new Error(`the epoch interval does not settle within ${settleMsMax / 1000} s`);
}

export async function measureThroughput(
  stage: Stage,
  sizes: Sizes,
  figures: Figures,
  memory: DaemonMemory,
  load: Load,
): Promise<void> {
  await stage.startDaemon();
  memory.watch(stage.daemonPid);
  const server = await startFilledRedis(stage, sizes);
  const benchmark = startLoad(stage, server, load, sizes);
  const window = () => letRun(sizes.seconds * 1000);
  await window();
  const ratios: number[] = [];
  const intervals: number[] = [];
  const overheads: number[] = [];
  const protectedWindow = async (): Promise<void> => {
    const end = performance.now() + sizes.seconds * 1000;
    for (let epochs = 0; epochs < windowEpochs || performance.now() < end; epochs++) {
      const { interval, overhead } = await nextEpoch(stage);
      intervals.push(interval.ms);
      overheads.push(overhead.used);
    }
  };
  let before = await rateWhile(stage, server, window);
  for (let pair = 1; pair <= sizes.pairs; pair++) {
    await stage.protect(server.pid, 'redis');
    await settle(stage);
    const protectedRate = await rateWhile(stage, server, protectedWindow);
    await stage.json('unprotect', 'redis');
    const after = await rateWhile(stage, server, window);
    ratios.push((2 * protectedRate) / (before + after));
    figures.note(
      `${load}, pair ${pair}: ${Math.round(before)} before, ${Math.round(protectedRate)} with, ` +
        `${Math.round(after)} after`,
    );
    before = after;
  }
  if (benchmark.exitCode !== null) throw new Error('redis-benchmark has an error');
  await endChild(benchmark);
  figures.distribution(`throughput, ${load}: ratio`, '', ratios);
  figures.distribution(`throughput, ${load}: epoch interval that this took`, 'ms', intervals);
  figures.distribution(`throughput, ${load}: overhead as the daemon sees it`, '', overheads);
  figures.atLeast(`throughput, ${load}`, median(ratios), 'of unprotected', target);
}
