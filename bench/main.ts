/**
 * `npm run bench -- engine|paging|peers [options]`: prints distributions (lines that begin with #), then one JSON
 * object a line per figure, and ends with 1 when a target was missed. Machines are noisy: what is
 * compared is measured in turns, in one run.
 */
import { cpus, totalmem } from 'node:os';
import { readFile } from 'node:fs/promises';
import { whyNoEngine } from '../test/support/repository.js';
import { Stage } from '../test/support/stage.js';
import { buildVictims } from '../test/support/victim.js';
import { measureCopy } from './engine/copy.js';
import { DaemonMemory } from './engine/daemon-memory.js';
import { measureDecision } from './engine/decision.js';
import { measurePause } from './engine/pause.js';
import { loads, type Load } from './engine/redis-load.js';
import { measureRestart } from './engine/restart.js';
import { readSizes, usage, type Sizes } from './engine/sizes.js';
import { paging, pagingUsage } from './paging/suite.js';
import { peers, peersUsage } from './peers/suite.js';
import type { Measurement, Suite } from './suite.js';
import { measureThroughput } from './engine/throughput.js';
import { measureChurn, measureSignals } from './engine/work.js';
import { Figures } from './figures.js';

function engineMeasurements(sizes: Sizes, figures: Figures, memory: DaemonMemory): Measurement[] {
  const each = (Object.keys(loads) as Load[]).filter((load) => load.startsWith(sizes.load));
  return [
    { name: 'copy', run: (stage) => measureCopy(stage, sizes, figures) },
    { name: 'pause', run: (stage) => measurePause(stage, sizes, figures) },
    { name: 'signals', run: (stage) => measureSignals(stage, sizes, figures) },
    { name: 'churn', run: (stage) => measureChurn(stage, sizes, figures) },
    { name: 'decision', run: (stage) => measureDecision(stage, sizes, figures) },
    ...each.map((load) => ({
      name: 'throughput',
      run: (stage: Stage) => measureThroughput(stage, sizes, figures, memory, load),
    })),
    ...each.map((load) => ({
      name: 'restart',
      run: (stage: Stage) => measureRestart(stage, sizes, figures, memory, load),
    })),
  ];
}

function engine(options: readonly string[], figures: Figures): Suite {
  const sizes = readSizes(options);
  const memory = new DaemonMemory();
  const afterEach = (): Promise<void> => Promise.resolve(memory.stop());
  const atTheEnd = (done: readonly string[]): Promise<void> => {
    if (done.some((name) => ['throughput', 'restart'].includes(name))) memory.report(figures);
    return Promise.resolve();
  };
  const measurements = engineMeasurements(sizes, figures, memory);
  return { sizes, measurements, afterEach, atTheEnd };
}

/** Ends what the stage has started when somebody ends the bench. */
function endAlong(stage: Stage): () => void {
  const end = (): void => {
    void stage.end().finally(() => process.exit(1));
  };
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, end);
  return () => {
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.off(signal, end);
  };
}

async function runOne(measurement: Measurement, figures: Figures, suite: Suite): Promise<void> {
  const stage = await Stage.make(`bench-${measurement.name}`);
  const release = endAlong(stage);
  const start = performance.now();
  try {
    await measurement.run(stage);
  } catch (error) {
    figures.failed(measurement.name, error);
    stage.keep();
    figures.note(`its files are in ${stage.folder}`);
  }
  await suite.afterEach();
  release();
  for (const what of await stage.end()) figures.failed(measurement.name, `left behind: ${what}`);
  figures.note(`${measurement.name} took ${Math.round((performance.now() - start) / 1000)} s`);
}

async function conditions(): Promise<string> {
  const kernel = (await readFile('/proc/sys/kernel/osrelease', 'utf8')).trim();
  const model = cpus()[0]?.model ?? 'unknown processor';
  const gib = (totalmem() / 2 ** 30).toFixed(1);
  return `${model}, ${cpus().length} processors, ${gib} GiB, Linux ${kernel}`;
}

async function main(args: readonly string[]): Promise<number> {
  const [name, ...options] = args;
  const suites = new Map([
    ['engine', engine],
    ['paging', paging],
    ['peers', peers],
  ]);
  const make = suites.get(name ?? '');
  if (make === undefined) {
    console.error(`usage: npm run bench -- engine|paging|peers [options]\nengine:${usage}`);
    console.error(`paging:${pagingUsage}\npeers:${peersUsage}`);
    return 2;
  }
  const missing = whyNoEngine();
  if (missing !== undefined) {
    console.error(`bench: ${missing}`);
    return 2;
  }
  const figures = new Figures();
  const machine = await conditions();
  const suite = make(options, figures, machine);
  await buildVictims();
  figures.note(machine);
  figures.note(JSON.stringify(suite.sizes));
  const { only } = suite.sizes;
  const wanted = suite.measurements.filter(({ name }) => only.length === 0 || only.includes(name));
  for (const measurement of wanted) await runOne(measurement, figures, suite);
  await suite.atTheEnd(wanted.map(({ name }) => name));
  return figures.print() ? 0 : 1;
}

process.exitCode = await main(process.argv.slice(2));
