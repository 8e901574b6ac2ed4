/** What a page from the store costs whoever waits for it, and how fast all of them come back. */
import { once } from 'node:events';
import { closeSync, openSync, readSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import { createConnection } from 'node:net';
import { askKeeper } from '../../src/native/keeper-status.js';
import { sendSignal } from '../../test/support/processes.js';
import type { Stage } from '../../test/support/stage.js';
import { letRun, waitFor } from '../../test/support/wait-for.js';
import { median, type Figures } from '../figures.js';
import { coldAfter, mebibytes, segmentsOf, settle, startWorking, withStore } from './paged.js';
import type { Working } from './paged.js';
import type { Sizes } from './sizes.js';

const share = 30;
const name = 'working';
const touchesPerSecond = 50_000;
/** As in working_set.c. */
const histogramAt = 64;
const firstNs = 256;
const perOctave = 16;
/** What was there already costs less. */
const faultUsMin = 3;
const refillRounds = 3;
const plainReads = 500;
const pageBytes = 4096;

interface Quantiles {
  readonly p50: number;
  readonly p99: number;
  readonly count: number;
}

function quantilesOf(counters: readonly number[]): Quantiles {
  const buckets = counters
    .slice(histogramAt)
    .map((count, i) => ({ count, us: upperUs(i) }))
    .filter(({ us }) => us >= faultUsMin);
  const count = buckets.reduce((sum, bucket) => sum + bucket.count, 0);
  const at = (part: number): number => {
    let seen = 0;
    return buckets.find((bucket) => (seen += bucket.count) >= part * count)?.us ?? Number.NaN;
  };
  return { p50: at(0.5), p99: at(0.99), count };
}

function upperUs(bucket: number): number {
  const octave = Math.floor(bucket / perOctave);
  return (firstNs * 2 ** octave * (1 + ((bucket % perOctave) + 1) / perOctave)) / 1000;
}

/** Forgets what the kernel has cached of the store: as dd(1) says, a count of 0 is the whole file. */
async function dropCache(stage: Stage, files: readonly string[]): Promise<void> {
  const each = files.map((file) =>
    stage.run('dd', [`if=${file}`, 'iflag=nocache', 'count=0', 'status=none']),
  );
  for (const { status, stderr } of await Promise.all(each)) {
    if (status !== 0) throw new Error(`dd cannot drop the cache: ${stderr}`);
  }
}

/** MB/s of dd(1) over all files, read as the refill reads them: through the page cache. */
async function plainRead(stage: Stage, files: readonly string[]): Promise<number> {
  const sizes = await Promise.all(files.map(async (file) => (await stat(file)).size));
  await dropCache(stage, files);
  const start = performance.now();
  const script = 'for f; do dd if="$f" of=/dev/null bs=1M status=none || exit 1; done';
  const { status } = await stage.run('sh', ['-c', script, 'sh', ...files]);
  const us = (performance.now() - start) * 1000;
  if (status !== 0) throw new Error('dd cannot read the store');
  return sizes.reduce((sum, size) => sum + size, 0) / us;
}

/** What the disk itself takes for a page anywhere in the store: the least that a fault can cost. */
async function plainPageUs(stage: Stage, files: readonly string[]): Promise<number> {
  await dropCache(stage, files);
  const buffer = Buffer.alloc(pageBytes);
  const each = Math.ceil(plainReads / Math.max(1, files.length));
  const samples: number[] = [];
  for (const file of files) {
    const pages = Math.floor((await stat(file)).size / pageBytes);
    const fd = openSync(file, 'r');
    for (let i = 0; i < each && pages > 0; i++) {
      const at = Math.floor(Math.random() * pages) * pageBytes;
      const start = performance.now();
      readSync(fd, buffer, 0, pageBytes, at);
      samples.push((performance.now() - start) * 1000);
    }
    closeSync(fd);
  }
  return median(samples.filter((us) => us >= faultUsMin));
}

async function tellKeeper(socketPath: string, words: string): Promise<void> {
  const socket = createConnection(socketPath);
  await once(socket, 'connect');
  socket.write(`${words}\n`);
  await once(socket, 'data');
  socket.destroy();
}

async function done(program: Working, counter: number, signal: NodeJS.Signals, pid: number) {
  const before = (await program.counters())[counter] ?? 0;
  sendSignal(pid, signal);
  const isDone = async (): Promise<boolean> => ((await program.counters())[counter] ?? 0) > before;
  await waitFor(isDone, 60_000, 'the program does not come back');
  return program.counters();
}

interface Promoted {
  readonly hostPid: number;
  readonly keeper: string;
}

async function kill(stage: Stage, refill: 'on' | 'off', cached: boolean, store: string) {
  const before = await settle(stage, name, 0.97 * (1 - share / 100));
  const keeper = before.replicas[0]?.keeperSocket ?? '';
  if (!cached) await dropCache(stage, await segmentsOf(store));
  if (refill === 'off') await tellKeeper(keeper, 'refill off');
  sendSignal(before.hostPid, 'SIGKILL');
  const runs = async () => {
    const now = await stage.group(name);
    return now && now.hostPid !== before.hostPid && now;
  };
  const { hostPid } = await waitFor(runs, 30_000, 'it is not promoted');
  return { hostPid, keeper } satisfies Promoted;
}

async function measureFaults(
  stage: Stage,
  figures: Figures,
  program: Working,
  store: string,
  cached: boolean,
) {
  const { hostPid, keeper } = await kill(stage, 'off', cached, store);
  const alone = quantilesOf(await done(program, 2, 'SIGUSR1', hostPid));
  const swept = await done(program, 3, 'SIGUSR2', hostPid);
  await tellKeeper(keeper, 'refill on');
  const beside = quantilesOf(await done(program, 2, 'SIGUSR1', hostPid));
  const perPageUs = (swept[5] ?? Number.NaN) / (swept[4] ?? Number.NaN) / 1000;
  const from = cached ? 'the page cache' : 'the disk';
  const text = ({ p50, p99, count }: Quantiles): string =>
    `${count} faults, p50 ${p50.toFixed(1)}, p99 ${p99.toFixed(1)} us`;
  figures.note(`from ${from}: ${text(alone)}; during refill ${text(beside)}`);
  return { alone, beside, perPageUs };
}

/** The last round is from the page cache: what the processors can do, whatever the disk. */
async function refillSpeed(stage: Stage, figures: Figures, store: string): Promise<number> {
  const plain: number[] = [];
  const refill: number[] = [];
  for (let round = 1; round <= refillRounds + 1; round++) {
    const cached = round > refillRounds;
    await settle(stage, name, 0.97 * (1 - share / 100));
    const files = await segmentsOf(store);
    const plainMbs = await plainRead(stage, files);
    const before = (await stage.groupInFull(name)).memory.coldBytes;
    const bytes = (await Promise.all(files.map(async (file) => (await stat(file)).size))).reduce(
      (sum, size) => sum + size,
      0,
    );
    const { keeper } = await kill(stage, 'on', cached, store);
    const status = await waitFor(
      async () => {
        await letRun(20);
        const now = await askKeeper(keeper);
        return now.refillUs > 0 && now;
      },
      60_000,
      'it is not refilled',
    );
    const refillMbs = bytes / status.refillUs;
    if (cached) figures.shown('refill, cached', refillMbs, 'MB/s of the store');
    else {
      plain.push(plainMbs);
      refill.push(refillMbs);
    }
    figures.note(
      `refill of ${mebibytes(before).toFixed(0)} MiB, ${mebibytes(bytes).toFixed(0)} MiB in the ` +
        `store, took ${Math.round(status.refillUs / 1000)} ms${cached ? ', cached' : ''}; ` +
        `dd ${Math.round(plainMbs)} MB/s`,
    );
    await stage.waitForState(name, ['protected', 'lagging'], 60_000);
  }
  figures.distribution('dd of the store', 'MB/s', plain);
  figures.distribution('refill from the store', 'MB/s', refill);
  return median(refill) / median(plain);
}

export async function measureStore(stage: Stage, sizes: Sizes, figures: Figures): Promise<void> {
  await withStore(stage, sizes, async (store) => {
    const program = await startWorking(stage, [sizes.mib, share, touchesPerSecond, 64]);
    await stage.protect(program.pid, name, '--ram', 'hot', ...coldAfter);
    const ratio = await refillSpeed(stage, figures, store);
    for (const cached of [true, false]) {
      const from = cached ? 'cached' : 'from the disk';
      await settle(stage, name, 0.97 * (1 - share / 100));
      const plainUs = cached ? 0 : await plainPageUs(stage, await segmentsOf(store));
      const { alone, beside, perPageUs } = await measureFaults(
        ...([stage, figures, program, store, cached] as const),
      );
      figures.atMost(`fault, ${from}, p50`, alone.p50, 'us', 60);
      if (!cached) {
        figures.shown('read of 4 KiB from the disk by pread(2), p50', plainUs, 'us');
        figures.shown('fault, from the disk, p50, of that', alone.p50 / plainUs, 'times');
      }
      figures.atMost(`page of a sweep, ${from}`, perPageUs, 'us', 10);
      figures.atMost(`fault during refill, ${from}, p99`, beside.p99, 'us', 2 * alone.p99);
      await stage.waitForState(name, ['protected', 'lagging'], 60_000);
    }
    figures.atLeast('refill', ratio, 'of what dd reads', 0.9);
    const wrong = (await program.counters())[1];
    if (wrong !== 0) throw new Error(`${wrong} pages had wrong content`);
    const last = await stage.unprotect(name);
    await stage.endPid(last.hostPid);
  });
}
