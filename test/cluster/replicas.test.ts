/** Replicas on another node: real daemons in network namespaces, and redis as what is protected. */
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, statSync } from 'node:fs';
import { readdir, readlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import t, { type Test } from 'tap';
import type { GroupStatus } from '../../src/api/schema.js';
import { isRunning, sendSignal } from '../support/processes.js';
import { waitFor } from '../support/wait-for.js';
import type { NodeInNamespace } from './namespaces.js';
import {
  ask,
  committed,
  groupOf,
  limitMs,
  pair,
  protect,
  redis,
  runsOn,
  sees,
  startRedis,
  whyNoPair,
  type Pair,
} from './redis-pair.js';

const skip = whyNoPair;

t.test('killed: it runs on the other node, and nothing is lost', { skip }, async (t) => {
  const nodes = await pair(t);
  const { a, b } = nodes;
  const pid = await startRedis(t, a);
  const fill = "for i = 1, 20000 do redis.call('SET', 'key' .. i, string.rep('x', 500)) end";
  ask(a, 'EVAL', fill, '0');
  await protect(nodes, pid);
  const status = await groupOf(a);
  t.match(status, { state: 'protected', to: 'b', replicas: [{ node: 'b', rank: 1 }] });
  t.match(await sees(b, ({ state }) => state === 'standby', 'no replica'), { node: 'a' });
  const refused = await b.type('promote', 'db');
  t.not(refused.status, 0);
  t.match(refused.stderr, /says that it runs there/);
  t.equal(ask(a, 'SET', 'last', 'word'), 'OK');
  sendSignal(pid, 'SIGKILL');
  const group = await runsOn(b);
  t.equal(ask(b, 'GET', 'last'), 'word');
  t.equal(ask(b, 'DBSIZE'), '20001');
  t.match(group.promotion, { exact: true });
  t.notOk(await isRunning(pid), 'the old one has gone');
  const over = await waitFor(
    async () => (await groupOf(a)).state === 'ended' && groupOf(a),
    limitMs,
    () => a.log,
  );
  t.match(over.reason, /runs on node b since epoch \d+, nothing lost/);
  // And the other way round, by itself.
  await waitFor(
    async () => (await groupOf(b)).state === 'protected',
    limitMs,
    () => `it is not protected again: ${b.log}`,
  );
  t.match(await sees(a, ({ state }) => state === 'standby', 'no replica on a'), { node: 'b' });
});

t.test('a node goes with its process: promoted by hand on the other', { skip }, async (t) => {
  const nodes = await pair(t);
  const { a, b } = nodes;
  const pid = await startRedis(t, a);
  await protect(nodes, pid);
  ask(a, 'SET', 'kept', 'value');
  await committed(nodes);
  a.plug('down');
  await a.endDaemon('SIGKILL');
  sendSignal(pid, 'SIGKILL');
  await sees(b, ({ state }) => state === 'cut off', 'the end of a was not seen');
  const done = await b.type('promote', 'db', '--to', 'b', '--force');
  t.equal(done.status, 0, done.stderr);
  t.match(done.stderr, /db: epoch \d+ of node a, committed .* ago: what was done since is lost/);
  await runsOn(b);
  t.equal(ask(b, 'GET', 'kept'), 'value');
});

t.test('the cable is pulled and put back: unprotected, then protected', { skip }, async (t) => {
  const nodes = await pair(t);
  const { a, b } = nodes;
  const pid = await startRedis(t, a);
  await protect(nodes, pid);
  b.plug('down');
  const lost = await waitFor(
    async () => {
      const group = await groupOf(a);
      return group.state === 'protecting' && group;
    },
    limitMs,
    () => `nothing was noticed: ${a.log}`,
  );
  t.match(lost.reason, /^unprotected: /);
  t.equal(ask(a, 'SET', 'meanwhile', 'written'), 'OK', 'the primary minds nothing');
  const before = await sees(b, ({ state }) => state === 'cut off', 'b noticed nothing');
  b.plug('up');
  await waitFor(
    async () => (await groupOf(a)).state === 'protected',
    limitMs,
    () => a.log,
  );
  const after = await sees(b, ({ state }) => state === 'standby', 'no replica is built anew');
  t.ok(after.generation > before.generation);
  await waitFor(
    async () => (await b.client.status()).standbys?.length === 1,
    limitMs,
    'the old replica stays',
  );
  t.equal(ask(a, 'GET', 'meanwhile'), 'written');
  // Moved by order.
  const moved = await a.type('promote', 'db', '--to', 'b');
  t.equal(moved.status, 0, moved.stderr);
  t.match(moved.stdout, /runs on node b since epoch \d+, nothing lost/);
  await runsOn(b);
  t.equal(ask(b, 'GET', 'meanwhile'), 'written');
});

/** Sees what is at `app` as `other`, both new; gives them with the path of a program in `app`. */
function ownFiles(t: Test): {
  readonly app: string;
  readonly other: string;
  readonly program: string;
} {
  const folder = mkdtempSync(path.join(tmpdir(), 'replpage-own-files-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  const [app, other] = [path.join(folder, 'app'), path.join(folder, 'other')];
  for (const each of [app, other]) mkdirSync(each);
  const program = path.join(app, 'redis-server');
  copyFileSync(redis, program);
  return { app, other, program };
}

async function survivesKill(t: Test, { a, b }: Pair, pid: number): Promise<GroupStatus> {
  t.equal(ask(a, 'SET', 'last', 'word'), 'OK');
  sendSignal(pid, 'SIGKILL');
  const group = await runsOn(b);
  t.equal(ask(b, 'GET', 'last'), 'word');
  t.match(group.promotion, { exact: true });
  return group;
}

t.test(
  'each node has files of its own: compared, and used as they are there',
  { skip },
  async (t) => {
    const { app, other, program } = ownFiles(t);
    copyFileSync('/bin/true', path.join(other, 'redis-server'));
    const nodes = await pair(t, { [app]: other });
    const { a } = nodes;
    const pid = await startRedis(t, a, program);
    const never = ['--name', 'db', '--to', 'b', '--ship-files', 'never'];
    const refused = await a.type('protect', String(pid), ...never);
    t.not(refused.status, 0);
    t.match(
      refused.stderr,
      /keeps no replica: .*redis-server \(executable\): it has another build id/,
    );
    copyFileSync(redis, path.join(other, 'redis-server'));
    await protect(nodes, pid);
    await survivesKill(t, nodes, pid);
  },
);

t.test('a file that is opened later and is not on the other node', { skip }, async (t) => {
  const { app, other, program } = ownFiles(t);
  copyFileSync(redis, path.join(other, 'redis-server'));
  const nodes = await pair(t, { [app]: other });
  const { a } = nodes;
  const pid = await startRedis(t, a, program, app);
  await protect(nodes, pid);
  t.equal(ask(a, 'CONFIG', 'SET', 'appendonly', 'yes'), 'OK');
  const told = /appendonly.*cannot be had here/;
  await waitFor(
    async () => told.test((await groupOf(a)).reason ?? ''),
    limitMs,
    () => `nobody says that the file is missing: ${a.log}`,
  );
  t.equal(ask(a, 'PING'), 'PONG', 'the primary minds nothing');
  t.equal(ask(a, 'CONFIG', 'SET', 'appendonly', 'no'), 'OK');
  await waitFor(
    async () => (await groupOf(a)).state === 'protected',
    limitMs,
    () => `it is not protected again: ${a.log}`,
  );
  await survivesKill(t, nodes, pid);
});

t.test('a program that the node lacks is shipped there', { skip }, async (t) => {
  const { app, other, program } = ownFiles(t);
  const nodes = await pair(t, { [app]: other });
  const { a, b } = nodes;
  const pid = await startRedis(t, a, program);
  await protect(nodes, pid);
  t.match((await a.type('events')).stdout, /file shipped.*redis-server to node b/);
  t.same(await readdir(other), ['redis-server'], 'a place for it');
  const group = await survivesKill(t, nodes, pid);
  t.equal(await readlink(`/proc/${group.hostPid}/exe`), program);
  t.equal(statSync(path.join(other, 'redis-server')).size, 0, 'nobody else sees it');
  const content = path.join(b.runtimeDir, 'state', 'shipped', 'content');
  t.equal((await readdir(content)).length, 1);
});

t.test('move and drain: built there first, and back', { skip }, async (t) => {
  const nodes = await pair(t);
  const { a, b } = nodes;
  const pid = await startRedis(t, a);
  const here = await a.type('protect', String(pid), '--name', 'db', '--max-pause', '1s');
  t.equal(here.status, 0, here.stderr);
  t.equal(ask(a, 'SET', 'kept', 'value'), 'OK');
  const unknown = await a.type('move', 'db', '--to', 'x');
  t.equal(unknown.status, 66, 'no such node');
  const moved = await a.type('move', 'db', '--to', 'b');
  t.equal(moved.status, 0, moved.stderr);
  t.match(moved.stdout, /runs on node b since epoch \d+, nothing lost/);
  t.notOk(await isRunning(pid), 'the old one has gone');
  await runsOn(b);
  t.equal(ask(b, 'GET', 'kept'), 'value');
  t.equal(ask(b, 'SET', 'later', 'word'), 'OK');
  await waitFor(
    async () => (await groupOf(b)).state === 'protected',
    limitMs,
    () => `it is not protected again: ${b.log}`,
  );
  const elsewhere = await a.type('drain', 'b');
  t.match(elsewhere.stderr, /on b: replpage drain b/);
  const drained = await b.type('drain', 'b', '--json');
  t.equal(drained.status, 0, drained.stderr);
  t.match(JSON.parse(drained.stdout), { node: 'b', moved: [{ name: 'db', to: 'a' }], left: [] });
  await runsOn(a);
  t.equal(ask(a, 'GET', 'kept'), 'value');
  t.equal(ask(a, 'GET', 'later'), 'word');
  t.equal((await b.type('drain', 'b')).stdout, 'no group runs on node b\n');
});

for (const of of ['replica', 'primary'] as const) {
  t.test(`the daemon of the ${of} is killed, and comes back`, { skip }, async (t) => {
    const nodes = await pair(t);
    const { a, b } = nodes;
    const killed = of === 'replica' ? b : a;
    const pid = await startRedis(t, a);
    await protect(nodes, pid);
    for (const signal of ['SIGKILL', 'SIGTERM'] as const) {
      await killed.endDaemon(signal);
      t.equal(ask(a, 'SET', signal, 'written'), 'OK', 'the primary minds nothing');
      if (of === 'replica') await isUnprotected(a);
      else await sees(b, ({ state }) => state === 'cut off', 'the end of the daemon was not seen');
      await killed.startDaemon();
      await waitFor(
        async () => (await groupOf(a)).state === 'protected',
        limitMs,
        () => `it is not protected again: ${a.log}`,
      );
      await waitFor(
        async () => (await b.client.status()).standbys?.length === 1,
        limitMs,
        'not one replica, but more',
      );
    }
    await survivesKill(t, nodes, pid);
    t.equal(ask(b, 'GET', 'SIGKILL'), 'written');
    t.equal(ask(b, 'GET', 'SIGTERM'), 'written');
  });
}

function isUnprotected(node: NodeInNamespace): Promise<boolean> {
  return waitFor(
    async () => /^unprotected: /.test((await groupOf(node)).reason ?? ''),
    limitMs,
    () => `nothing was noticed: ${node.log}`,
  );
}
