/** From the decision to the first instruction of the replica, over sizes of memory. */
import { sendSignal } from '../../test/support/processes.js';
import type { Stage } from '../../test/support/stage.js';
import { Victim } from '../../test/support/victim.js';
import { median, type Figures } from '../figures.js';
import type { Sizes } from './sizes.js';

const mibMin = 64;

export async function measureDecision(stage: Stage, sizes: Sizes, figures: Figures): Promise<void> {
  await stage.startDaemon();
  const medians: number[] = [];
  for (let mib = mibMin; mib <= sizes.mibMax; mib *= 4) {
    // Two threads that read; nothing but their counters is written.
    const victim = await Victim.start(stage, 'memory_load', [String(mib), '2', '0']);
    if (typeof victim === 'string') throw new Error(victim);
    const name = `size-${mib}`;
    let group = await stage.protect(victim.pid, name);
    const times: number[] = [];
    const deaths: number[] = [];
    for (let kill = 1; kill <= sizes.kills; kill++) {
      await victim.waitForRounds(3);
      sendSignal(group.hostPid, 'SIGKILL');
      group = await stage.waitForPromotion(name, group.generation, 120_000);
      times.push(group.promotion?.decisionToRunUs ?? Number.NaN);
      deaths.push(group.promotion?.deathToRunUs ?? Number.NaN);
    }
    figures.distribution(`decision to first instruction, ${mib} MiB`, 'us', times);
    figures.distribution(`death to first instruction, ${mib} MiB`, 'us', deaths);
    figures.atMost(`decision to first instruction, ${mib} MiB, p50`, median(times), 'us', 1000);
    medians.push(median(times));
    await stage.command('unprotect', name);
    await victim.end();
  }
  const [first = Number.NaN] = medians;
  const last = medians.at(-1) ?? Number.NaN;
  // Half as much again, or a fifth of a millisecond, is what noise does.
  const limit = Math.max(first * 1.5, first + 200);
  figures.atMost('decision to first instruction, largest', last, 'us', limit);
}
