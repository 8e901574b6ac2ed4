/** Drills: a replica is tried out, and nobody notices. */
import t from 'tap';
import type { DrillReport } from '../../src/api/moves-schema.js';
import { ask, groupOf, pair, protect, startRedis, whyNoPair } from './redis-pair.js';

t.test('a drill here and there, while redis works', { skip: whyNoPair }, async (t) => {
  const nodes = await pair(t);
  const { a, b } = nodes;
  const pid = await startRedis(t, a);
  const fill = `for i = 1, 20000 do redis.call('SET', 'key' .. i, string.rep('x', 3000)) end`;
  ask(a, 'EVAL', fill, '0');
  await protect(nodes, pid);
  const load = a.spawn('redis-benchmark', '-p', '6399', '-t', 'set,get', '-n', '100000000', '-q');
  t.teardown(() => load.kill('SIGKILL'));
  const before = await groupOf(a);
  for (const on of ['b', 'self']) {
    const typed = await a.type('drill', 'db', '--on', on, '--json');
    t.equal(typed.status, 0, typed.stderr + typed.stdout);
    const report = JSON.parse(typed.stdout) as DrillReport;
    t.equal(report.problem, null);
    t.ok(report.epoch > before.epoch && report.promoteUs > 0);
    t.ok(on === 'self' || report.comparedPages > 15_000, `${report.comparedPages} pages compared`);
    t.ok(report.threads > 1 && report.calls > 0, `${report.calls} of ${report.threads}`);
    t.comment(`on ${on}: ${JSON.stringify(report)}`);
  }
  const usual = await a.type('drill', 'db');
  t.match(usual.stdout, /would run on b from epoch \d+/, usual.stderr);
  const after = await groupOf(a);
  t.equal(after.state, 'protected');
  t.equal(after.generation, before.generation);
  t.same(
    after.replicas.map(({ node, state }) => `${node} ${state}`),
    ['b in sync'],
  );
  t.equal(ask(a, 'PING'), 'PONG');
  t.equal((await b.client.status()).groups.length, 0, 'nothing runs there');
  const standbys = (await b.client.status()).standbys ?? [];
  t.same(
    standbys.map(({ name }) => name),
    ['db'],
    'nothing of it is left',
  );
  t.equal(load.exitCode, null, 'no client had an error');
});

t.test('what would not run', { skip: whyNoPair }, async (t) => {
  const nodes = await pair(t);
  const { a, b } = nodes;
  const pid = await startRedis(t, a);
  await protect(nodes, pid);
  const taken = b.start('redis-server', '--port', '6399', '--save', '', '--bind', '0.0.0.0');
  t.teardown(() => taken.kill('SIGKILL'));
  let typed = await a.type('drill', 'db', '--on', 'b');
  for (let tries = 0; typed.status === 0 && tries < 50; tries++) {
    typed = await a.type('drill', 'db', '--on', 'b'); // until it listens there
  }
  t.equal(typed.status, 1);
  t.match(typed.stdout, /would not run on b: .*[Aa]ddress already in use/);
  const nobody = await a.type('drill', 'db', '--on', 'c');
  t.match(nobody.stderr, /there is no node c/);
  t.equal((await groupOf(a)).state, 'protected');
});
