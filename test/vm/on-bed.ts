/** One test on a bed of its own: what goes wrong fails the test, with the nodes' last words. */
import { existsSync } from 'node:fs';
import type { Test } from 'tap';
import { Bed, type BedOptions } from './bed/bed.js';
import { interruptible } from './bed/interruption.js';
import { kernelPackages } from './bed/kernel.js';
import { namespaceOf } from './bed/network.js';
import { lives } from './bed/processes.js';
import { dismantleOwn } from './bed/state.js';

/** REPLPAGE_VM_KERNELS=6.12 runs the tests on that kernel only. */
export const kernels =
  process.env['REPLPAGE_VM_KERNELS']?.split(',') ?? Object.keys(kernelPackages);

/** A few nodes that every continuous integration can afford: see .ci/run. */
export const short = process.env['REPLPAGE_VM_SHORT'] === '1';

/** Runs `body` on a new bed, which is ended whatever comes of it. */
export async function onBed(
  t: Test,
  options: BedOptions,
  body: (bed: Bed) => Promise<void>,
): Promise<void> {
  await interruptible(async () => runOn(await Bed.up(options), t, body), dismantleOwn);
}

async function runOn(bed: Bed, t: Test, body: (bed: Bed) => Promise<void>): Promise<void> {
  try {
    await body(bed);
  } catch (error) {
    t.fail(error instanceof Error ? (error.stack ?? error.message) : String(error));
    for (const node of bed.nodes) t.comment(`${node.name}: ${node.lastWords()}`);
  }
  const processes = bed.nodes.flatMap((node) => node.process ?? []);
  await bed.down();
  t.same(leftOf(bed, processes), [], 'nothing is left behind');
}

/** What remains of a bed that was taken down. */
function leftOf(bed: Bed, processes: readonly Parameters<typeof lives>[0][]): string[] {
  return [
    ...processes.filter(lives).map(({ pid }) => `process ${pid}`),
    ...[bed.folder, `/run/netns/${namespaceOf(bed.name)}`].filter((path) => existsSync(path)),
  ];
}
