/** More written between two epochs than the staging memory holds. */
import t from 'tap';
import { onStage, startVictim } from '../support/on-stage.js';
import { whyNoEngine } from '../support/repository.js';
import { waitFor } from '../support/wait-for.js';

const growthMiB = 96;

t.test(
  'what outgrows the staging memory is still committed',
  { skip: whyNoEngine() ?? false },
  (t) =>
    onStage(t, 'burst', async (stage) => {
      await stage.startDaemon('--staging-max', '32MiB');
      const victim = await startVictim(stage, 'memory_growth', String(growthMiB));
      const first = await stage.protect(victim.pid, 'main', '--epoch', '10s');
      await victim.waitUntil(
        ({ counters }) => counters[0] === growthMiB * 256,
        60_000,
        ({ counters }) => `it stopped growing at page ${counters[0]}`,
      );
      await waitFor(
        async () => ((await stage.group('main'))?.memory.residentBytes ?? 0) >= growthMiB << 20,
        60_000,
        async () => `the replica does not follow: ${JSON.stringify(await stage.group('main'))}`,
      );
      t.pass('the replica holds all of it');
      process.kill(victim.pid, 'SIGKILL');
      const promoted = await stage.waitForPromotion('main', first.generation);
      t.equal(promoted.promotion?.exact, true, 'the last epoch is exact');
      await victim.waitForRounds(20);
    }),
);
