/**
 * The control: what judges the engine is judged first, without any protection. The clients see
 * nothing wrong while a server lives, and see at once when it is killed; a victim says what it finds.
 */
import t from 'tap';
import { processesOf, sendSignal } from '../support/processes.js';
import { Recorder } from '../support/recorder.js';
import {
  readSqlite,
  startMemcached,
  startNginx,
  startNode,
  startPython,
  startRedis,
  startSqlite,
} from '../support/servers.js';
import { Stage } from '../support/stage.js';
import { buildTools, buildVictims, Victim } from '../support/victim.js';
import { waitFor } from '../support/wait-for.js';

const servers = [
  ['redis', (stage: Stage) => startRedis(stage)],
  ['memcached', (stage: Stage) => startMemcached(stage)],
  ['nginx', (stage: Stage) => startNginx(stage)],
  ['node', (stage: Stage) => startNode(stage, 4)],
  ['python3', (stage: Stage) => startPython(stage, 4)],
] as const;

for (const [name, start] of servers) {
  t.test(`a client of ${name} notices its death`, async (t) => {
    const stage = await Stage.make(`control-${name}`);
    const server = await start(stage);
    const recorder = await Recorder.connect({
      port: server.port,
      protocol: server.protocol(0),
      depth: 8,
    });
    await waitFor(
      () => recorder.answered > 500 || recorder.error !== undefined,
      20_000,
      'no answers',
    );
    t.equal(recorder.error, undefined, `${recorder.answered} right answers`);
    for (const { pid } of await processesOf(stage.folder)) sendSignal(pid, 'SIGKILL');
    await waitFor(() => recorder.error !== undefined, 5000, 'the death goes unnoticed');
    t.match(recorder.error, /closed|reset|EPIPE/i);
    recorder.close();
    t.same(await stage.end(), [], 'nothing is left behind');
  });
}

t.test('sqlite3 writes rows that can be counted meanwhile', async (t) => {
  const stage = await Stage.make('control-sqlite');
  const { child, database } = await startSqlite(stage, 300);
  await waitFor(() => child.exitCode !== null, 60_000, 'sqlite3 does not end');
  t.equal(child.exitCode, 0);
  t.same(await readSqlite(stage, database), { rows: 300, last: 300, integrity: 'ok' });
  t.same(await stage.end(), [], 'nothing is left behind');
});

t.test('a victim that is killed makes no more rounds', async (t) => {
  const stage = await Stage.make('control-victim');
  const victim = await Victim.start(stage, 'memory_load', ['8', '2', '1000']);
  if (typeof victim === 'string') throw new Error(victim);
  await victim.waitForRounds(5);
  sendSignal(victim.pid, 'SIGKILL');
  await t.rejects(victim.waitForRounds(5, 500), { message: /rounds instead of 5/ });
  t.same(await stage.end(), [], 'nothing is left behind');
});

t.test('a lost signal is found', async (t) => {
  const stage = await Stage.make('control-signals');
  const tools = await buildTools();
  await buildVictims();
  const victim = await Victim.start(stage, 'signal_count', ['100']);
  if (typeof victim === 'string') throw new Error(victim);
  const first = await stage.run(`${tools}/sender`, [String(victim.pid), '2000', '100']);
  t.equal(first.stdout.trim(), '100');
  await victim.waitUntil(
    (state) => state.counters[1] === 100,
    5000,
    (state) => `it counted ${state.counters[1]}`,
  );
  // The second sender begins at 0 again: to the victim that is a hundred lost ones.
  await stage.run(`${tools}/sender`, [String(victim.pid), '2000', '1']);
  await t.rejects(victim.waitForRounds(50), { message: /outside signal 0 instead of 100/ });
  t.same(await stage.end(), [], 'nothing is left behind');
});
