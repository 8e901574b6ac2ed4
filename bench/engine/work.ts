/**
 * Small programs that count what they get done, with and without protection, in turns, and beside a
 * tracer that does nothing: what the machine's own stops cost.
 */
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { root } from '../../test/support/repository.js';
import type { Stage } from '../../test/support/stage.js';
import { buildIn } from '../../test/support/victim.js';
import { letRun, waitFor } from '../../test/support/wait-for.js';
import { endChild } from './redis-load.js';
import { median, type Figures } from '../figures.js';
import type { Sizes } from './sizes.js';

export const buildPrograms = (): Promise<string> => buildIn(path.join(root, 'bench/programs'));

interface Work {
  readonly name: string;
  readonly program: string;
  readonly argument: string;
  /** Kept on one processor, where the tracer joins it: no stop wakes another one. */
  readonly pinned?: boolean;
  /** Share of the unprotected speed that must be left. */
  readonly target: number;
}

const signals: Work = {
  name: 'work beside 1,000 handled signals a second',
  program: 'signal_work',
  argument: '1000',
  target: 0.96,
};
const pinnedSignals: Work = { ...signals, name: `${signals.name}, on one processor`, pinned: true };
const churns: readonly Work[] = [
  { name: 'thread creation', program: 'churn', argument: 'threads', target: 0.85 },
  { name: 'fork and exec', program: 'churn', argument: 'processes', target: 0.85 },
];

async function measureWork(stage: Stage, sizes: Sizes, figures: Figures, work: Work) {
  const programs = await buildPrograms();
  const place = work.pinned ? 'one' : 'any';
  const file = stage.path(`${work.program}-${work.argument}-${place}.counters`);
  const command = [path.join(programs, work.program), file, work.argument];
  const child = work.pinned
    ? stage.spawn('taskset', ['-c', '0', ...command])
    : stage.spawn(command[0] ?? '', command.slice(1));
  const count = async (index: number): Promise<number> => {
    const page = await readFile(file).catch(() => Buffer.alloc(0));
    return page.length < 16 ? 0 : Number(page.readBigUInt64LE(8 * index));
  };
  await waitFor(async () => (await count(0)) > 0, 10_000, `${work.program} does nothing`);
  const run = async (): Promise<number> => {
    const start = performance.now();
    const before = await count(0);
    const signalsBefore = await count(1);
    await letRun(sizes.seconds * 1000);
    const tookS = (performance.now() - start) / 1000;
    const handled = ((await count(1)) - signalsBefore) / tookS;
    if (handled > 0) figures.note(`${Math.round(handled)} signals handled a second`);
    return ((await count(0)) - before) / tookS;
  };
  const ratios: number[] = [];
  const bareRatios: number[] = [];
  for (let pair = 1; pair <= sizes.pairs; pair++) {
    const without = await run();
    await stage.protect(child.pid ?? 0, 'work');
    const protectedRate = await run();
    await stage.json('unprotect', 'work');
    const bare = await besideBareTracer(stage, programs, child.pid ?? 0, run);
    ratios.push(protectedRate / without);
    bareRatios.push(bare / without);
    figures.note(
      `${work.name}, pair ${pair}: ${Math.round(without)}/s without, ` +
        `${Math.round(protectedRate)}/s with, ${Math.round(bare)}/s beside a bare tracer`,
    );
  }
  figures.distribution(`${work.name}: ratio beside a bare tracer`, '', bareRatios);
  figures.distribution(`${work.name}: ratio`, '', ratios);
  figures.atLeast(work.name, median(ratios), 'of unprotected', work.target);
  await stage.endPid(child.pid ?? 0);
}

async function besideBareTracer(
  stage: Stage,
  programs: string,
  pid: number,
  run: () => Promise<number>,
): Promise<number> {
  const tracer = stage.spawn(path.join(programs, 'bare_tracer'), [String(pid)]);
  try {
    if (tracer.stdout) await Promise.race([once(tracer.stdout, 'data'), once(tracer, 'exit')]);
    if (tracer.exitCode !== null) throw new Error('the bare tracer cannot attach');
    return await run();
  } finally {
    await endChild(tracer);
  }
}

export async function measureSignals(stage: Stage, sizes: Sizes, figures: Figures): Promise<void> {
  await stage.startDaemon();
  for (const work of [signals, pinnedSignals]) await measureWork(stage, sizes, figures, work);
}

export async function measureChurn(stage: Stage, sizes: Sizes, figures: Figures): Promise<void> {
  await stage.startDaemon();
  for (const work of churns) await measureWork(stage, sizes, figures, work);
}
