/** From the decision to the first instruction, and to redis' first answer, with and without cold pages. */
import { sendSignal } from '../../test/support/processes.js';
import type { Stage } from '../../test/support/stage.js';
import { letRun, waitFor } from '../../test/support/wait-for.js';
import { Probe } from '../engine/probe.js';
import { startFilledRedis } from '../engine/redis-load.js';
import { median, type Figures } from '../figures.js';
import { coldAfter, settle, startWorking, withStore } from './paged.js';
import type { Sizes } from './sizes.js';

const share = 30;
/** Half as much again, or so much, is what noise does. */
const noiseUs = 200;
const answerTimes = 1.5;
const name = 'killed';
const touchesPerSecond = 200_000;

interface Setting {
  readonly label: string;
  readonly flags: readonly string[];
  readonly cold: number;
}
const settings: readonly Setting[] = [
  { label: 'none cold', flags: ['--ram', 'all'], cold: 0 },
  { label: '70 % cold', flags: ['--ram', 'hot', ...coldAfter], cold: 0.97 * (1 - share / 100) },
];

async function decisions(stage: Stage, sizes: Sizes, setting: Setting): Promise<number[]> {
  const program = await startWorking(stage, [sizes.mibKilled, share, touchesPerSecond, 16]);
  await stage.protect(program.pid, name, ...setting.flags);
  const times: number[] = [];
  for (let kill = 1; kill <= sizes.kills; kill++) {
    const before = await settle(stage, name, setting.cold);
    sendSignal(before.hostPid, 'SIGKILL');
    const after = await stage.waitForPromotion(name, before.generation);
    times.push(after.promotion?.decisionToRunUs ?? Number.NaN);
  }
  const wrong = (await program.counters())[1];
  if (wrong !== 0) throw new Error(`${wrong} pages had wrong content`);
  const last = await stage.unprotect(name);
  await stage.endPid(last.hostPid);
  return times;
}

export async function measurePromotion(
  stage: Stage,
  sizes: Sizes,
  figures: Figures,
): Promise<void> {
  await withStore(stage, sizes, async () => {
    const medians: number[] = [];
    for (const setting of settings) {
      const times = await decisions(stage, sizes, setting);
      figures.distribution(`decision to first instruction, ${setting.label}`, 'us', times);
      medians.push(median(times));
    }
    const [none = Number.NaN, cold = Number.NaN] = medians;
    const limit = Math.max(1.5 * none, none + noiseUs);
    figures.atMost('decision to first instruction, 70 % cold, p50', cold, 'us', limit);
  });
}

async function firstAnswers(stage: Stage, sizes: Sizes, setting: Setting): Promise<number[]> {
  const server = await startFilledRedis(stage, { mib: sizes.mibKilled });
  await stage.protect(server.pid, name, ...setting.flags);
  const waits: number[] = [];
  for (let kill = 1; kill <= sizes.kills; kill++) {
    const before = await settle(stage, name, setting.cold === 0 ? 0 : 0.6);
    // Only now: what it asks for again and again is a page like another.
    const probe = await Probe.connect(server.port);
    await waitFor(() => probe.answered > 20, 10_000, 'redis does not answer');
    await letRun(200);
    const next = probe.nextAnswer();
    const start = performance.now();
    sendSignal(before.hostPid, 'SIGKILL');
    waits.push((await next) - start);
    probe.close();
    await stage.waitForPromotion(name, before.generation);
  }
  const last = await stage.unprotect(name);
  await stage.endPid(last.hostPid);
  return waits;
}

export async function measureAnswer(stage: Stage, sizes: Sizes, figures: Figures): Promise<void> {
  await withStore(stage, sizes, async () => {
    const medians: number[] = [];
    for (const setting of settings) {
      const waits = await firstAnswers(stage, sizes, setting);
      figures.distribution(`redis, SIGKILL to next answer, ${setting.label}`, 'ms', waits);
      medians.push(median(waits));
    }
    const [none = Number.NaN, cold = Number.NaN] = medians;
    figures.atMost('redis, SIGKILL to next answer, p50', cold, 'ms', none * answerTimes);
  });
}
