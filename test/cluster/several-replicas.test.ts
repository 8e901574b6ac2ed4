/** A group with several replicas: who is in sync may be promoted, who was away comes back. */
import t from 'tap';
import type { GroupStatus } from '../../src/api/schema.js';
import { sendSignal } from '../support/processes.js';
import { waitFor } from '../support/wait-for.js';
import type { NodeInNamespace } from './namespaces.js';
import {
  ask,
  cluster,
  groupOf,
  limitMs,
  runsOn,
  sees,
  startRedis,
  whyNoPair,
} from './redis-pair.js';

/** Some 60 MB. */
const fill = `for i = 1, 20000 do redis.call('SET', 'key' .. i, i .. string.rep('x', 3000)) end`;

const statesOf = ({ replicas }: GroupStatus): string =>
  replicas.map(({ node, state }) => `${node} ${state}`).join(', ');

async function becomes(node: NodeInNamespace, states: string): Promise<void> {
  let group: GroupStatus | undefined;
  await waitFor(
    async () => {
      group = await groupOf(node);
      return statesOf(group) === states;
    },
    limitMs,
    () => `replicas: ${JSON.stringify(group?.replicas)}, not ${states}; ${node.log}`,
  );
}

async function protectOn(
  node: NodeInNamespace,
  pid: number,
  ...more: readonly string[]
): Promise<void> {
  const common = ['--name', 'db', '--max-pause', '1s'];
  const done = await node.type('protect', String(pid), ...common, ...more);
  if (done.status !== 0) throw new Error(`${done.stderr} ${node.log}`);
}

/** All that was written so far is in every replica in sync. */
async function nextEpochs(node: NodeInNamespace): Promise<void> {
  const { epoch } = await groupOf(node);
  await waitFor(
    async () => (await groupOf(node)).epoch > epoch + 1,
    limitMs,
    () => `no more epochs are committed: ${node.log}`,
  );
}

const digest = (node: NodeInNamespace): string => ask(node, 'DEBUG', 'DIGEST');

async function three(t: Parameters<typeof cluster>[0]) {
  const { network, nodes } = await cluster(t, ['a', 'b', 'c']);
  const [a, b, c] = nodes;
  if (!a || !b || !c) throw new Error('there are no three nodes');
  return { network, a, b, c };
}

t.test('one of two is lost, and comes back whole', { skip: whyNoPair }, async (t) => {
  const { a, b, c } = await three(t);
  const pid = await startRedis(t, a);
  ask(a, 'EVAL', fill, '0');
  await protectOn(a, pid, '--to', 'b', '--to', 'c');
  await becomes(a, 'b in sync, c in sync');
  await b.endDaemon('SIGKILL');
  await waitFor(
    async () => statesOf(await groupOf(a)).startsWith('b out'),
    limitMs,
    () => `b is not taken out: ${a.log}`,
  );
  ask(a, 'SET', 'while', 'b was away');
  await nextEpochs(a);
  t.equal((await groupOf(a)).state, 'protected', 'the group goes on with the other');
  await b.startDaemon();
  await b.sees('a', 'up');
  await becomes(a, 'b in sync, c in sync');
  ask(a, 'SET', 'after', 'b came back');
  await nextEpochs(a);
  const before = digest(a);
  const moved = await a.type('promote', 'db', '--to', 'b');
  t.equal(moved.status, 0, moved.stderr);
  await runsOn(b);
  t.equal(digest(b), before, 'the whole of it');
  t.equal(ask(b, 'GET', 'while'), 'b was away');
  await becomes(b, 'a in sync, c in sync');
  t.equal((await groupOf(b)).generation, 2);
  await sees(c, (standby) => standby.generation === 2 && standby.epoch > 0, 'c has the new one');
});

t.test('who was left behind is not promoted', { skip: whyNoPair }, async (t) => {
  const { a, b, c } = await three(t);
  const pid = await startRedis(t, a);
  await protectOn(a, pid, '--to', 'b', '--to', 'c');
  await becomes(a, 'b in sync, c in sync');
  await nextEpochs(a);
  b.plug('down');
  await waitFor(
    async () => statesOf(await groupOf(a)) === 'b out, c in sync',
    limitMs,
    () => `b is not taken out: ${a.log}`,
  );
  ask(a, 'SET', 'while', 'b was away');
  await nextEpochs(a);
  a.plug('down');
  b.plug('up');
  await b.sees('c', 'up');
  await b.sees('a', 'unreachable');
  const refused = await b.type('promote', 'db');
  t.match(refused.stderr, /in sync is the one on node c/);
  t.not(refused.status, 0);
  await sees(c, ({ state }) => state === 'cut off', 'c still hears a');
  const promoted = await c.type('promote', 'db');
  t.equal(promoted.status, 0, promoted.stderr);
  await runsOn(c);
  t.equal(ask(c, 'GET', 'while'), 'b was away');
  await becomes(c, 'b in sync, a out');
  // So that only one answers when its cable is there again.
  sendSignal(pid, 'SIGKILL');
});

t.test('one here and one there', { skip: whyNoPair }, async (t) => {
  const { a, c } = await three(t);
  const pid = await startRedis(t, a);
  ask(a, 'EVAL', fill, '0');
  await protectOn(a, pid, '--to', 'self', '--to', 'b');
  const here = (await groupOf(a)).node;
  await becomes(a, `${here} in sync, b in sync`);
  ask(a, 'SET', 'last', 'before the kill');
  sendSignal(pid, 'SIGKILL');
  await runsOn(a);
  t.equal(ask(a, 'GET', 'last'), 'before the kill', 'the one here has everything');
  await becomes(a, `${here} in sync, b in sync`);
  const before = digest(a);
  const moved = await a.type('move', 'db', '--to', 'c');
  t.equal(moved.status, 0, moved.stderr);
  await runsOn(c);
  t.equal(digest(c), before, 'to a node that had none, without a gap');
  await waitFor(
    async () => (await groupOf(c)).state === 'protected',
    limitMs,
    () => `it is not protected again: ${c.log}`,
  );
  t.match(statesOf(await groupOf(c)), /^a in sync, \S+ in sync, b in sync$/);
});
