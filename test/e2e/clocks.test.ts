/**
 * Absolute waits through crashes: what is promoted is an epoch, some time old, and no clock may step
 * back in it, no wait end early and no beat of a timer get lost; also where the program lives in a
 * time namespace of its own.
 */
import t from 'tap';
import { sendSignal } from '../support/processes.js';
import { onStage, startVictim } from '../support/on-stage.js';
import { whyNoEngine } from '../support/repository.js';
import { letRun } from '../support/wait-for.js';

const skip = whyNoEngine() ?? false;
const crashes = 2;
/** The last epoch before a crash is as old as that on average. */
const epoch = '600ms';

for (const clocks of ['the machine', 'a time namespace']) {
  const args = clocks === 'the machine' ? [] : ['shifted'];
  t.test(`waits by the clock of ${clocks} outlive crashes`, { skip, timeout: 240_000 }, (t) =>
    onStage(t, 'clocks', async (stage) => {
      await stage.startDaemon();
      const victim = await startVictim(stage, 'clock_waits', ...args);
      const flags = ['--files', 'keep', '--epoch', epoch];
      let group = await stage.protect(victim.pid, 'waits', ...flags);
      for (let crash = 1; crash <= crashes; crash++) {
        await victim.waitForRounds(2);
        await letRun(250);
        t.ok(sendSignal(group.hostPid, 'SIGSEGV'), `crash ${crash}`);
        group = await stage.waitForPromotion('waits', group.generation);
        t.equal(group.promotion?.exact, false, `crash ${crash}: it goes back to an epoch`);
        await victim.waitForRounds(3);
      }
      await stage.unprotect('waits');
      t.same(await victim.end(), [], 'it can be ended');
    }),
  );
}
