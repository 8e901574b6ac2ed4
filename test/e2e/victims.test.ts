/**
 * Every victim: protected while it checks, killed while it checks, found checking on, without an
 * error, in the promoted process; and once more on that one. Those that cannot be replicated are
 * refused by name and run on untouched.
 *
 * REPLPAGE_TEST_VICTIMS=name,name runs only these; REPLPAGE_TEST_KILLS=n kills each of them n times.
 */
import t, { type Test } from 'tap';
import { isRunning, sendSignal, statusField } from '../support/processes.js';
import { whyNoEngine } from '../support/repository.js';
import { Stage } from '../support/stage.js';
import { buildVictims, readVictims, Victim, type VictimEntry } from '../support/victim.js';
import { slowness } from '../support/wait-for.js';

const skip = whyNoEngine() ?? false;
const only = process.env['REPLPAGE_TEST_VICTIMS']?.split(',');
const kills = Number(process.env['REPLPAGE_TEST_KILLS'] ?? 2);

const groupName = (entry: VictimEntry): string => entry.name.replaceAll(/[^A-Za-z0-9]+/g, '-');

async function survives(t: Test, stage: Stage, victim: Victim, entry: VictimEntry): Promise<void> {
  const rounds = entry.slow ? 3 : 20;
  const name = groupName(entry);
  const { pid: ownPid } = await victim.state();
  let group = await stage.protect(victim.pid, name);
  t.equal(group.hostPid, victim.pid, 'the primary is the process itself');
  await victim.waitForRounds(rounds);
  group = await stage.waitForState(name, ['protected', 'lagging']);
  for (let kill = 1; kill <= kills; kill++) {
    const killed = group.hostPid;
    // Every other time the whole process group, as kill -9 -PGID does.
    const whole = entry.killGroup === true && kill % 2 === 0;
    t.ok(sendSignal(whole ? -killed : killed, 'SIGKILL'), `kill ${kill}: it is hit`);
    group = await stage.waitForPromotion(name, group.generation);
    t.not(group.hostPid, killed, `kill ${kill}: another process of this machine runs`);
    t.equal(group.promotion?.exact, true, `kill ${kill}: nothing is lost`);
    await victim.waitForRounds(rounds);
    t.notOk(await isRunning(killed), `kill ${kill}: the old process is gone`);
    const { pid } = await victim.state();
    t.equal(pid, ownPid, 'it has the pid it had');
  }
  await stage.unprotect(name);
  await victim.waitForRounds(rounds);
  t.equal(await statusField(group.hostPid, 'TracerPid'), '0', 'nobody traces it any more');
}

async function isRefused(t: Test, stage: Stage, victim: Victim, entry: VictimEntry): Promise<void> {
  const words = new RegExp(entry.refused ?? entry.orRefused ?? '', 'i');
  const name = groupName(entry);
  const result = await stage.command('protect', String(victim.pid), '--name', name, '--json');
  if (result.status === 0 && entry.orSurvives) {
    await victim.waitForRounds(20);
    return;
  }
  t.equal(result.status, 65, 'the exit status says refused');
  const { error } = JSON.parse(result.stdout) as {
    error: { code: string; message: string; refusals?: { object: string }[] };
  };
  t.equal(error.code, 'ERR_REFUSED');
  t.match(`${error.message} ${JSON.stringify(error.refusals)}`, words, 'it says what of it');
  const objects = (error.refusals ?? []).map(({ object }) => object).join(' ');
  const { number } = await victim.state();
  if (entry.names === 'fd') t.match(objects, new RegExp(`\\b${number}\\b`), 'it names the fd');
  if (entry.names === 'address') {
    t.match(objects.toLowerCase(), number.toString(16), 'it names the address');
  }
  await victim.waitForRounds(20);
  t.equal(await statusField(victim.pid, 'TracerPid'), '0', 'it is left alone');
}

async function runVictims(t: Test, name: string, names?: readonly string[]): Promise<void> {
  await buildVictims();
  const stage = await Stage.make(name);
  await stage.startDaemon();
  const kernel = await stage.kernel();
  for (const entry of await readVictims()) {
    if (names && !names.includes(entry.name)) continue;
    const title = entry.refused ? `${entry.name}: is refused` : `${entry.name}: ${entry.covers}`;
    const lacks = entry.needs !== undefined && kernel[entry.needs] !== true;
    await t.test(title, { skip: lacks && `this kernel has no ${entry.needs}` }, async (t) => {
      const victim = await Victim.start(stage, entry.program, entry.arguments);
      if (typeof victim === 'string') {
        t.comment(victim);
        return;
      }
      try {
        if (entry.refused) await isRefused(t, stage, victim, entry);
        else await survives(t, stage, victim, entry);
      } catch (error) {
        stage.keep();
        const state = await victim.read();
        t.fail(error instanceof Error ? error.message : String(error));
        t.comment(`${state?.rounds} rounds, ${state?.errors} errors: ${state?.text}`);
      }
      if (stage.daemonRuns()) await stage.unprotect(groupName(entry)).catch(() => undefined);
      t.same(await victim.end(), [], 'it can be ended');
      if (!stage.daemonRuns()) {
        t.fail('the daemon has ended');
        await stage.startDaemon();
      }
    });
  }
  t.same(await stage.end(), [], 'nothing is left behind');
}

t.test('victims', { skip, timeout: 600_000 * slowness }, (t) => runVictims(t, 'victims', only));

// What only the process itself can tell is asked for there, as on Debian's 6.1 and 6.12.
const asked = [
  'thread attributes',
  'signal count',
  'credentials of root',
  'credentials of nobody',
  'credentials of threads',
  'stack and heap',
];
t.test(
  'victims where the kernel does not let us read its memory',
  { skip, timeout: 120_000 * slowness },
  async (t) => {
    process.env['REPLPAGE_KERNEL_READER'] = 'off';
    try {
      await runVictims(t, 'asked', only?.filter((name) => asked.includes(name)) ?? asked);
    } finally {
      delete process.env['REPLPAGE_KERNEL_READER'];
    }
  },
);
