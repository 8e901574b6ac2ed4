/** Files on their way to another node: sender and receiver with nothing between them but a function. */
import { createHash } from 'node:crypto';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { describe } from '../../src/base/errors.js';
import type { FileTaken, ReplicaMessage } from '../../src/format/peer-messages.js';
import { FileReceiver } from '../../src/replica/file-receiver.js';
import {
  sendFile,
  shipChunkBytes,
  type AskNode,
  type SentFile,
} from '../../src/replica/file-sender.js';
import { ShippedFiles } from '../../src/replica/shipped-files.js';

const group = { name: 'db', generation: 3 };
const bytesMax = 4 * 1024 * 1024;

interface Node {
  readonly folder: string;
  readonly files: ShippedFiles;
  readonly receiver: FileReceiver;
  readonly clock: { nowMs: number };
  readonly ask: AskNode;
  /** What was asked, in order. */
  readonly asked: ReplicaMessage[];
}

/** `damage` may change what arrives. */
async function node(
  t: Test,
  damage: (message: ReplicaMessage) => ReplicaMessage = (message) => message,
): Promise<Node> {
  const folder = mkdtempSync(join(tmpdir(), 'replpage-shipping-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  const files = await ShippedFiles.open(join(folder, 'shipped'), bytesMax);
  const clock = { nowMs: 0 };
  const receiver = new FileReceiver(files, () => clock.nowMs);
  const asked: ReplicaMessage[] = [];
  const answer = async (message: ReplicaMessage): Promise<boolean> => {
    if (message.kind === 'shipFile') return receiver.announce('a', message.body);
    if (message.kind === 'shipChunk') await receiver.take('a', message.body);
    return false;
  };
  const ask: AskNode = async (make): Promise<FileTaken> => {
    const request = asked.length + 1;
    const message = damage(make(request));
    asked.push(message);
    try {
      return { request, why: null, wanted: await answer(message) };
    } catch (error) {
      return { request, why: describe(error), wanted: false };
    }
  };
  return { folder, files, receiver, clock, ask, asked };
}

function source(folder: string, content: Buffer): SentFile {
  const file = join(folder, 'program');
  writeFileSync(file, content);
  return { path: '/usr/bin/program', source: file, sizeBytes: content.length };
}

const sha256 = (content: Buffer): string => createHash('sha256').update(content).digest('hex');

t.test('a file arrives whole, whatever its length, and once', async (t) => {
  const { folder, files, ask, asked } = await node(t);
  for (const length of [0, 1, shipChunkBytes, shipChunkBytes + 1, 3 * shipChunkBytes]) {
    const content = Buffer.alloc(length, length % 251);
    const hash = await sendFile(source(folder, content), group, ask);
    t.equal(hash, sha256(content));
    const place = files.pathOf(hash) ?? t.fail('it is there');
    t.ok(readFileSync(String(place)).equals(content), `${length} bytes`);
  }
  const before = asked.length;
  await sendFile(source(folder, Buffer.alloc(1, 1)), group, ask);
  t.equal(asked.length, before + 1, 'what is there is only announced');
});

t.test('what is damaged on its way is refused, and nothing of it is left', async (t) => {
  const spoiled = Buffer.from('spoiled').toString('base64');
  const { folder, files, ask } = await node(t, (message) =>
    message.kind === 'shipChunk'
      ? { kind: 'shipChunk', body: { ...message.body, data: spoiled } }
      : message,
  );
  const content = Buffer.from('content');
  await t.rejects(sendFile(source(folder, content), group, ask), {
    code: 'ERR_REFUSED',
    message: /cannot ship \/usr\/bin\/program: .*another content/,
  });
  t.equal(files.pathOf(sha256(content)), undefined);
  t.same(readdirSync(join(folder, 'shipped', 'incoming')), []);
});

t.test('a file that changed since it was asked for is not sent', async (t) => {
  const { folder, ask, asked } = await node(t);
  const before = source(folder, Buffer.from('one'));
  source(folder, Buffer.from('another'));
  await t.rejects(sendFile(before, group, ask), /has changed meanwhile/);
  t.same(asked, []);
});

t.test('more than was announced, more than there is room for, and out of the blue', async (t) => {
  const { folder, files, receiver, ask } = await node(t);
  const hash = sha256(Buffer.from('x'));
  const announced = { ...group, request: 1, sha256: hash, sizeBytes: 1 };
  t.equal(await receiver.announce('a', announced), true);
  const chunk = { request: 2, transfer: 1, data: 'eHh4', last: true };
  await t.rejects(receiver.take('b', chunk), /no such file/, 'another node has none');
  await t.rejects(receiver.take('a', chunk), /longer than was announced/);
  await t.rejects(receiver.take('a', chunk), /no such file/, 'it was given up');
  t.equal(files.pathOf(hash), undefined);
  await t.rejects(sendFile(source(folder, Buffer.alloc(bytesMax + 1)), group, ask), /no room/);
});

t.test('what is here already stays for the replica that comes for it', async (t) => {
  const { folder, files, ask } = await node(t);
  const hash = await sendFile(source(folder, Buffer.from('x')), group, ask);
  await files.keep('db.3', { hashes: [hash], made: [] });
  await sendFile(source(folder, Buffer.from('x')), { ...group, generation: 4 }, ask);
  await files.release('db.3');
  t.ok(files.pathOf(hash), 'generation 4 is to have it');
  await files.keep('db.4', { hashes: [hash], made: [] });
  await files.release('db.4');
  t.equal(files.pathOf(hash), undefined);
});

t.test('a file that fails gives its room back once', async (t) => {
  const { receiver } = await node(t);
  const announced = (request: number, sizeBytes: number) => ({
    ...{ ...group, request, sizeBytes },
    sha256: sha256(Buffer.from(String(request))),
  });
  for (let request = 1; request < 4; request++) {
    await receiver.announce('a', announced(request, bytesMax));
    const wrong = { request: 9, transfer: request, data: 'eHh4', last: true };
    await t.rejects(receiver.take('a', wrong), /another content/);
  }
  await t.rejects(receiver.announce('a', announced(8, bytesMax + 1)), /no room/);
});

t.test('a node that falls silent in the middle gives its room back', async (t) => {
  const { folder, receiver, clock } = await node(t);
  const announced = (request: number) => ({
    ...{ ...group, request, sizeBytes: bytesMax },
    sha256: sha256(Buffer.from(String(request))),
  });
  t.equal(await receiver.announce('a', announced(1)), true);
  await t.rejects(receiver.announce('a', announced(2)), /no room/);
  clock.nowMs += 61_000;
  t.equal(await receiver.announce('a', announced(3)), true);
  t.equal(readdirSync(join(folder, 'shipped', 'incoming')).length, 1);
});
