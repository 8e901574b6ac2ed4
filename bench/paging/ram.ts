/** What a replica takes of RAM when its primary touches a share of its pages, everything counted. */
import type { RamStatus } from '../../src/api/schema.js';
import type { Stage } from '../../test/support/stage.js';
import { letRun } from '../../test/support/wait-for.js';
import type { Figures } from '../figures.js';
import { coldAfter, mebibytes, settle, startWorking, withStore } from './paged.js';
import type { Sizes } from './sizes.js';
import type { Results } from './results.js';

const touchesPerSecond = 500_000;
const lookMs = 200;
const pointsMax = 2;
/** One touch in so many is a write. */
const fewWrites = 1024;
const manyWrites = 64;
const writtenShare = 30;
const name = 'working';

/** The highest that was seen of each part, in one time together. */
async function peak(stage: Stage, seconds: number): Promise<RamStatus> {
  const end = performance.now() + Math.max(seconds, 3) * 1000;
  let highest: RamStatus | undefined;
  while (performance.now() < end) {
    const { ram } = (await stage.groupInFull(name)).memory;
    if (ram && ram.totalBytes > (highest?.totalBytes ?? 0)) highest = ram;
    await letRun(lookMs);
  }
  if (!highest) throw new Error('nobody can tell what the replica takes');
  return highest;
}

function inWords(ram: RamStatus): string {
  const parts = Object.entries(ram).map(
    ([key, bytes]) => `${key.replace('Bytes', '')} ${mebibytes(Number(bytes)).toFixed(1)}`,
  );
  return `${parts.join(', ')} MiB`;
}

async function measureOne(
  stage: Stage,
  sizes: Sizes,
  share: number,
  flags: readonly string[],
  touchesPerWrite = fewWrites,
): Promise<RamStatus> {
  const program = await startWorking(stage, [
    ...[sizes.mib, share, touchesPerSecond, 1, touchesPerWrite],
  ]);
  await stage.protect(program.pid, name, ...flags);
  await settle(stage, name, (1 - share / 100) * 0.97);
  const ram = await peak(stage, sizes.seconds);
  await stage.unprotect(name);
  await stage.endPid(program.pid);
  return ram;
}

export async function measureRam(
  stage: Stage,
  sizes: Sizes,
  figures: Figures,
  results: Results,
): Promise<void> {
  await withStore(stage, sizes, async () => {
    const full = await measureOne(stage, sizes, 30, ['--ram', 'all']);
    figures.note(`full replica of ${sizes.mib} MiB: ${inWords(full)}`);
    for (const share of sizes.shares) {
      const ram = await measureOne(stage, sizes, share, ['--ram', 'hot', ...coldAfter]);
      figures.note(`working set of ${share} %: ${inWords(ram)}`);
      const percent = (100 * ram.totalBytes) / full.totalBytes;
      results.ram.push({ share, percent, ram, full });
      const label = `RAM of a replica, working set of ${share} %`;
      figures.atMost(label, percent, '% of a full one', share + pointsMax);
    }
    await measureWritten(stage, sizes, figures, full);
  });
}

/** Shown only: what one epoch has to hold grows with the writes, and is staged whole. */
async function measureWritten(stage: Stage, sizes: Sizes, figures: Figures, full: RamStatus) {
  if (!sizes.shares.includes(writtenShare)) return;
  const flags = ['--ram', 'hot', ...coldAfter];
  const ram = await measureOne(stage, sizes, writtenShare, flags, manyWrites);
  figures.note(`working set of ${writtenShare} %, written much: ${inWords(ram)}`);
  const rate = Math.round(touchesPerSecond / manyWrites);
  const percent = (100 * ram.totalBytes) / full.totalBytes;
  const label = `RAM of a replica, working set of ${writtenShare} %, ${rate} writes a second`;
  figures.shown(label, percent, '% of a full one');
}
