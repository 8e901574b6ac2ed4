/** redis under a Zipf load: how fast it answers after a promotion, with 30 % of it in RAM and all. */
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { sendSignal } from '../../test/support/processes.js';
import type { Stage } from '../../test/support/stage.js';
import { letRun, waitFor } from '../../test/support/wait-for.js';
import { endChild, keysOf, startFilledRedis } from '../engine/redis-load.js';
import { buildPrograms } from '../engine/work.js';
import type { Figures } from '../figures.js';
import { coldAfter, settle, withStore } from './paged.js';
import type { Results } from './results.js';
import type { Sizes } from './sizes.js';

const connections = 16;
const stepMs = 100;
const curveMs = 10_000;
const name = 'redis';

const settings = [
  { label: 'all in RAM', flags: ['--ram', 'all'], cold: 0 },
  { label: '30 % in RAM', flags: ['--ram', '30%', ...coldAfter], cold: 0.65 },
] as const;

/** Answers a second in each step. */
async function curve(count: () => Promise<number>, lengthMs: number): Promise<number[]> {
  const rates: number[] = [];
  const start = performance.now();
  let before = { at: start, answers: await count() };
  for (let step = 1; step * stepMs <= lengthMs; step++) {
    await letRun(start + step * stepMs - performance.now());
    const now = { at: performance.now(), answers: await count() };
    rates.push(((now.answers - before.answers) * 1000) / (now.at - before.at));
    before = now;
  }
  return rates;
}

const mean = (values: readonly number[]): number =>
  values.reduce((sum, each) => sum + each, 0) / values.length;

async function measureOne(
  stage: Stage,
  sizes: Sizes,
  results: Results,
  setting: (typeof settings)[number],
): Promise<number> {
  const server = await startFilledRedis(stage, { mib: sizes.mibKilled });
  const programs = await buildPrograms();
  const file = stage.path(`zipf-${server.port}.counters`);
  const keys = String(keysOf({ mib: sizes.mibKilled }));
  const load = stage.spawn(path.join(programs, 'zipf_load'), [
    ...[file, String(server.port), keys, String(connections)],
  ]);
  const count = async (): Promise<number> => {
    const page = await readFile(file).catch(() => Buffer.alloc(0));
    return page.length < 16 ? 0 : Number(page.readBigUInt64LE(0));
  };
  await waitFor(async () => (await count()) > 0, 30_000, 'redis answers nothing');
  await stage.protect(server.pid, name, ...setting.flags);
  const before = await settle(stage, name, setting.cold);
  const beforePerSecond = mean(await curve(count, 3000));
  sendSignal(before.hostPid, 'SIGKILL');
  const perSecond = await curve(count, curveMs);
  if (load.exitCode !== null) throw new Error('the load has lost its connections');
  await endChild(load);
  const last = await stage.waitForPromotion(name, before.generation);
  await stage.unprotect(name);
  await stage.endPid(last.hostPid);
  results.zipf.push({ name: setting.label, beforePerSecond, perSecond });
  return mean(perSecond);
}

export async function measureZipf(
  stage: Stage,
  sizes: Sizes,
  figures: Figures,
  results: Results,
): Promise<void> {
  await withStore(stage, sizes, async () => {
    const rates: number[] = [];
    for (const setting of settings) {
      rates.push(await measureOne(stage, sizes, results, setting));
      const { beforePerSecond, perSecond } = results.zipf.at(-1) ?? results.zipf[0]!;
      const text = perSecond.slice(0, 20).map((each) => Math.round(each / 1000));
      figures.note(`${setting.label}: ${Math.round(beforePerSecond)}/s before the promotion`);
      figures.note(`then, thousands a second in steps of ${stepMs} ms: ${text.join(' ')} ...`);
    }
    const [all = Number.NaN, some = Number.NaN] = rates;
    figures.shown('redis, first 10 s after promotion, 30 % in RAM', some / all, 'of all in RAM');
  });
}
