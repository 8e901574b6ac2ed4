/** The first copy of a process, beside a plain program that copies as much into fresh memory. */
import path from 'node:path';
import type { ProtectReport } from '../../src/api/schema.js';
import type { Stage } from '../../test/support/stage.js';
import { Victim } from '../../test/support/victim.js';
import { median, type Figures } from '../figures.js';
import type { Sizes } from './sizes.js';
import { buildPrograms } from './work.js';

const timesMin = 5;

export async function measureCopy(stage: Stage, sizes: Sizes, figures: Figures): Promise<void> {
  const programs = await buildPrograms();
  await stage.startDaemon();
  const victim = await Victim.start(stage, 'memory_load', [String(sizes.mib), '1', '0']);
  if (typeof victim === 'string') throw new Error(victim);
  const plain: number[] = [];
  const copied: number[] = [];
  for (let i = 0; i < Math.max(timesMin, sizes.pairs); i++) {
    const { stdout, status } = await stage.run(path.join(programs, 'copy'), [String(sizes.mib)]);
    if (status !== 0) throw new Error('the plain copy failed');
    plain.push((sizes.mib * 2 ** 20) / Number(stdout));
    const pid = String(victim.pid);
    const report = await stage.json<ProtectReport>('protect', pid, '--name', 'copy');
    copied.push(report.copiedBytes / report.copyUs);
    await stage.json('unprotect', 'copy');
  }
  figures.distribution('first copy', 'MB/s', copied);
  figures.distribution('plain copy into fresh memory', 'MB/s', plain);
  figures.atLeast('first copy', median(copied) / median(plain), 'of a plain copy', 0.7);
}
