/** Moves that cannot be: the group runs on one of the nodes, whole. */
import t from 'tap';
import { setTimeout as pause } from 'node:timers/promises';
import { describe } from '../../src/base/errors.js';
import { waitFor } from '../support/wait-for.js';
import {
  ask,
  groupOf,
  limitMs,
  pair,
  port,
  protect,
  runsOn,
  startRedis,
  whyNoPair,
  type Pair,
} from './redis-pair.js';

const keys = 20_000;
/** Touches all of them, so that much is to be sent at the end. */
const write = (mark: string): string[] => [
  'EVAL',
  `for i = 1, ${keys} do redis.call('SET', 'key' .. i, '${mark}' .. string.rep('x', 5000)) end`,
  '0',
];

/** Milliseconds from the order to the cut. */
const delays = [20, 80, 150, 250] as const;

async function isOneAndWhole({ a, b }: Pair, mark: string): Promise<'a' | 'b'> {
  const running = await waitFor(
    () => {
      const found = [a, b].filter((node) => ask(node, 'PING') === 'PONG');
      return found.length > 0 && found;
    },
    limitMs,
    () => `it runs nowhere: ${a.log} ${b.log}`,
  );
  const [node] = running;
  if (running.length !== 1 || node === undefined) throw new Error('it runs twice');
  for (const key of [1, keys / 2, keys]) {
    const value = ask(node, 'GETRANGE', `key${key}`, '0', String(mark.length - 1));
    if (value !== mark) throw new Error(`key${key} has ${value}, not ${mark}`);
  }
  return node === a ? 'a' : 'b';
}

t.test('the cable is pulled in the middle of a move', { skip: whyNoPair }, async (t) => {
  const nodes = await pair(t);
  const { a, b } = nodes;
  const pid = await startRedis(t, a);
  ask(a, ...write('first'));
  await protect(nodes, pid);
  for (const delayMs of delays) {
    const mark = `after${delayMs}`;
    ask(a, ...write(mark));
    const moved = a.client.move('db', 'b').then(
      () => 'moved',
      (error: unknown) => describe(error),
    );
    await pause(delayMs);
    b.plug('down');
    const outcome = await moved;
    const where = await isOneAndWhole(nodes, mark);
    b.plug('up');
    t.comment(`cut after ${delayMs} ms: it runs on ${where}: ${outcome}`);
    if (where === 'a') t.not(outcome, 'moved', 'and the command says so');
    const node = where === 'a' ? a : b;
    await waitFor(
      async () => (await groupOf(node)).state === 'protected',
      limitMs,
      () => `it is not protected again: ${node.log}`,
    );
    if (where === 'a') continue;
    const back = await b.type('move', 'db', '--to', 'a');
    t.equal(back.status, 0, back.stderr);
    await runsOn(a);
    await waitFor(
      async () => (await groupOf(a)).state === 'protected',
      limitMs,
      () => `it is not protected again: ${a.log}`,
    );
  }
});

t.test('what it needs is in use on the other node', { skip: whyNoPair }, async (t) => {
  const nodes = await pair(t);
  const { a, b } = nodes;
  const pid = await startRedis(t, a);
  await protect(nodes, pid);
  t.equal(ask(a, 'SET', 'kept', 'value'), 'OK');
  const listen = `import socket; s = socket.create_server(("0.0.0.0", ${port})); input()`;
  const other = b.spawn('python3', '-c', `${listen}`);
  t.teardown(() => void other.kill('SIGKILL'));
  await pause(1000);
  const moved = await a.type('move', 'db', '--to', 'b');
  t.not(moved.status, 0);
  t.match(moved.stderr, /it cannot run there: bind: Address already in use/);
  t.equal(ask(a, 'GET', 'kept'), 'value', 'it runs on');
  other.kill('SIGKILL');
  await waitFor(
    async () => (await groupOf(a)).state === 'protected',
    limitMs,
    () => `it is not protected again: ${a.log}`,
  );
  const done = await a.type('move', 'db', '--to', 'b');
  t.equal(done.status, 0, done.stderr);
  await runsOn(b);
  t.equal(ask(b, 'GET', 'kept'), 'value');
});
