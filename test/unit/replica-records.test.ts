/** Who of a group's replicas may be promoted, as nodes tell each other. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import t, { type Test } from 'tap';
import { PeerRequests } from '../../src/daemon/peer-requests.js';
import { ReplicaRecords } from '../../src/daemon/replica-records.js';
import { homesAfter } from '../../src/daemon/took-over.js';
import type { Member, ReplicaMessage, ReplicaRecord } from '../../src/format/peer-messages.js';
import type { ClusterNode } from '../../src/membership/cluster-node.js';

const silent = () => undefined;
const log = { debug: silent, info: silent, warn: silent, error: silent, child: () => log };

const member = (name: string): Member => ({
  ...{ id: name.padEnd(16, '0'), name, address: `${name}:7420`, zone: null },
  ...{ signs: false, revision: 1, removed: false },
});

/** A node whose others are `up`, and take what they are told; `answer` hears of it. */
async function node(
  t: Test,
  up: readonly string[],
  answer: (to: string, message: ReplicaMessage) => void = silent,
) {
  const folder = await mkdtemp(path.join(tmpdir(), 'replpage-records-'));
  t.teardown(() => rm(folder, { recursive: true, force: true }));
  const requests = new PeerRequests();
  const sent: { readonly to: string; readonly records: readonly ReplicaRecord[] }[] = [];
  const cluster = {
    self: member('a'),
    nodes: ['a', ...up].map((name) => ({
      ...{ member: member(name), reach: name === 'a' ? 'self' : 'up' },
    })),
    send: (id: string, message: ReplicaMessage) => {
      const to = id.replace(/0+$/, '');
      if (message.kind === 'replicaRecords') sent.push({ to, records: message.body.records });
      answer(to, message);
      if (message.kind === 'replicaRecords' && message.body.request !== 0) {
        const body = { request: message.body.request, why: null };
        setImmediate(() => requests.heard(member(to), { kind: 'recordsTaken', body }));
      }
      return true;
    },
  } as unknown as ClusterNode;
  const file = path.join(folder, 'replicas.json');
  const make = () =>
    new ReplicaRecords({
      path: file,
      log: log,
      requests,
      cluster: () => cluster,
    });
  return { records: make(), make, sent, requests, file };
}

const record = (change: Partial<ReplicaRecord>): ReplicaRecord => ({
  ...{ name: 'db', id: '0123456789abcdef', protection: 1, generation: 1, revision: 1 },
  ...{ node: 'b', inSync: [], over: false },
  ...change,
});

const group = { name: 'db', id: '0123456789abcdef', generation: 1 };

t.test('a record is told to all, and waited for where a replica is in sync', async (t) => {
  const asked: string[] = [];
  const scene = await node(t, ['b', 'c'], (to, message) => {
    if (message.kind !== 'replicaRecords' || message.body.request === 0) return;
    asked.push(to);
  });
  await scene.records.record({ ...group, inSync: ['self', 'b'] });
  t.same(asked, ['b']);
  t.same(scene.sent.map(({ to }) => to).sort(), ['b', 'c']);
  t.same(scene.records.of('db')?.inSync, ['a', 'b']);
  t.equal(scene.records.of('db')?.revision, 1);
  await scene.records.record({ ...group, inSync: ['self'] });
  t.equal(scene.records.of('db')?.revision, 2);
});

t.test('what is newer counts, whoever tells it', async (t) => {
  const { records } = await node(t, ['b', 'c']);
  const told = record({ revision: 3, inSync: ['c'] });
  t.equal(await records.heard(member('c'), [told]), null);
  const older = record({ revision: 2, inSync: ['a', 'c'] });
  t.match(await records.heard(member('c'), [older]), /newer record/);
  t.same(records.of('db')?.inSync, ['c'], 'an older revision');
  await records.heard(member('c'), [record({ generation: 2 })]);
  t.equal(records.of('db')?.generation, 2);
  await records.heard(member('c'), [record({ revision: 9 })]);
  t.equal(records.of('db')?.generation, 2, 'an older generation');
  const anew = record({ id: 'f'.repeat(16), protection: 2 });
  await records.heard(member('c'), [anew]);
  t.equal(records.of('db')?.id, anew.id, 'a protection that begins anew');
  await records.heard(member('b'), [record({ ...anew, revision: 2, over: true })]);
  t.equal(records.of('db'), undefined);
  await records.heard(member('c'), [anew, record({ generation: 7 })]);
  t.equal(records.of('db'), undefined, 'nobody brings it back');
});

t.test('nobody knows better what this node has said', async (t) => {
  const { records, sent } = await node(t, ['c']);
  await records.record({ ...group, inSync: ['self', 'c'] });
  await records.heard(member('c'), [record({ node: 'a', generation: 5 })]);
  t.equal(records.of('db')?.generation, 1);
  records.tick();
  t.same(sent.at(-1)?.records[0]?.inSync, ['a', 'c'], 'and it is told again');
  t.equal(sent.at(-1)?.records[0]?.protection, 2, 'so that it counts for more');
});

t.test('a node whose file was lost begins above what others remember', async (t) => {
  const { records } = await node(t, ['c']);
  await records.heard(member('c'), [record({ node: 'a', protection: 3, inSync: ['c'] })]);
  t.equal(records.of('db'), undefined);
  await records.record({ ...group, id: 'f'.repeat(16), inSync: ['self', 'c'] });
  t.match(records.of('db'), { protection: 4, inSync: ['a', 'c'] });
});

t.test('who is to be promoted is the only one', async (t) => {
  const { records } = await node(t, ['c']);
  await records.heard(member('b'), [record({ inSync: ['a', 'c'] })]);
  const takeBack = await records.claim('db');
  t.match(records.of('db'), { node: 'a', inSync: [], revision: 2 });
  await takeBack();
  t.same(records.of('db')?.inSync, ['c'], 'the others may be, when that failed');
});

t.test('it is on disk, and damage is no record', async (t) => {
  const { records, make, file } = await node(t, ['b']);
  const told = record({ revision: 3, inSync: ['b'] });
  await records.heard(member('b'), [told]);
  const again = make();
  await again.start();
  t.same(again.of('db'), told);
  const text = await readFile(file, 'utf8');
  await writeFile(file, text.replace('"db"', '"dc"'));
  const damaged = make();
  await damaged.start();
  t.same(damaged.all, []);
});

t.test('who was away hears everything', async (t) => {
  const up = ['b'];
  const { records, sent } = await node(t, up);
  const told = record({ inSync: ['b'] });
  await records.heard(member('b'), [told]);
  records.tick();
  records.tick();
  t.equal(sent.length, 1, 'once');
  t.same(sent[0]?.records, [told]);
});

t.test('where a group is kept after it went to another node', (t) => {
  t.same(homesAfter(['b'], 'a', 'b'), ['a']);
  t.same(homesAfter(['self', 'b', 'c'], 'a', 'b'), ['self', 'a', 'c']);
  t.same(homesAfter(['self'], 'a', 'b'), ['a'], 'a move to where no replica was');
  t.same(homesAfter(['self', 'c'], 'a', 'b'), ['a', 'self', 'c']);
  t.end();
});
