/** One test on a stage of its own: what goes wrong fails the test, and nothing may be left behind. */
import type { Test } from 'tap';
import { Stage } from './stage.js';
import { Victim } from './victim.js';

/** Runs `body` on a new stage. The folder of a failed test is kept for a look. */
export async function onStage(
  t: Test,
  name: string,
  body: (stage: Stage) => Promise<void>,
): Promise<void> {
  const stage = await Stage.make(name);
  try {
    await body(stage);
  } catch (error) {
    stage.keep();
    t.comment(`its files are in ${stage.folder}`);
    t.fail(error instanceof Error ? (error.stack ?? error.message) : String(error));
  }
  t.same(await stage.end(), [], 'nothing is left behind');
}

/** A victim that this machine must be able to run. Throws with the reason when it is not. */
export async function startVictim(
  stage: Stage,
  program: string,
  ...args: string[]
): Promise<Victim> {
  const victim = await Victim.start(stage, program, args);
  if (typeof victim === 'string') throw new Error(victim);
  return victim;
}
