/** The store of files that came from other nodes: checked, limited, shared, removed when unused. */
import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { ShippedFiles } from '../../src/replica/shipped-files.js';

const hashOf = (text: string): string => createHash('sha256').update(text).digest('hex');

async function folderFor(t: Test): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'replpage-shipped-'));
  t.teardown(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

async function ship(files: ShippedFiles, user: string, text: string): Promise<string> {
  const hash = hashOf(text);
  const incoming = await files.receive(user, hash, text.length);
  await incoming.write(Buffer.from(text.slice(0, 3)));
  await incoming.write(Buffer.from(text.slice(3)));
  await incoming.finish();
  return hash;
}

t.test('a shipped file is there once, for as long as a replica uses it', async (t) => {
  const folder = await folderFor(t);
  const files = await ShippedFiles.open(join(folder, 'shipped'), 1000);
  const hash = await ship(files, 'one', 'a library');
  const place = files.pathOf(hash) ?? '';
  t.equal(await readFile(place, 'utf8'), 'a library');
  t.equal((await stat(place)).mode & 0o777, 0o555, 'nobody writes to it, and it may be executed');
  t.equal((await stat(join(folder, 'shipped'))).mode & 0o777, 0o700);
  await files.keep('one', { hashes: [hash], made: [] });
  await files.keep('two/3', { hashes: [hash], made: [] });
  t.equal(files.bytes, 9);
  await files.release('one');
  t.ok(files.pathOf(hash), 'the other one uses it');

  const again = await ShippedFiles.open(join(folder, 'shipped'), 1000);
  t.same(again.users, ['two/3'], 'a restarted daemon knows who uses what');
  t.ok(again.pathOf(hash));
  await again.release('two/3');
  t.equal(again.pathOf(hash), undefined);
  t.same(await readdir(join(folder, 'shipped', 'content')), []);
  t.same(await readdir(join(folder, 'shipped', 'users')), []);
});

t.test('what came for one replica is not swept away by the end of another', async (t) => {
  const files = await ShippedFiles.open(join(await folderFor(t), 'shipped'), 1000);
  const hash = await ship(files, 'one', 'for one');
  await files.keep('two', { hashes: [], made: [] });
  await files.release('two');
  t.ok(files.pathOf(hash));
  await files.release('one');
  t.equal(files.pathOf(hash), undefined, 'its replica was never built');
});

t.test('only what was announced counts', async (t) => {
  const folder = join(await folderFor(t), 'shipped');
  const files = await ShippedFiles.open(folder, 20);
  const other = await files.receive('one', hashOf('right'), 5);
  await other.write(Buffer.from('wrong'));
  await t.rejects(other.finish(), { code: 'ERR_LIMIT' });
  const short = await files.receive('one', hashOf('right'), 5);
  await short.write(Buffer.from('rig'));
  await t.rejects(short.finish(), { code: 'ERR_LIMIT' });
  const long = await files.receive('one', hashOf('right'), 5);
  await t.rejects(long.write(Buffer.from('right!')), { code: 'ERR_LIMIT' });
  await long.abandon();
  t.equal(files.pathOf(hashOf('right')), undefined);
  t.same(await readdir(join(folder, 'incoming')), []);
  await t.rejects(files.receive('one', '../../etc/passwd', 5), { code: 'ERR_LIMIT' });
  await t.rejects(files.receive('one', hashOf('x'), -1), { code: 'ERR_LIMIT' });
  await t.rejects(files.keep('one', { hashes: [hashOf('x')], made: [] }));

  await ship(files, 'one', 'twelve bytes');
  const waiting = await files.receive('one', hashOf('another'), 7);
  await t.rejects(files.receive('one', hashOf('y'), 2), { code: 'ERR_LIMIT' }, 'it is full');
  await waiting.abandon();
  await (await files.receive('one', hashOf('y'), 2)).abandon();
  await files.receive('one', hashOf('z'), 1);
  const again = await ShippedFiles.open(folder, 20);
  t.same(await readdir(join(folder, 'incoming')), [], 'half a file is removed');
  t.equal(again.bytes, 0, 'and what no replica was built with');
});

t.test('places that were made are removed, and nothing else', async (t) => {
  const folder = await folderFor(t);
  const files = await ShippedFiles.open(join(folder, 'shipped'), 100);
  const path = (name: string): string => join(folder, name);
  await mkdir(path('made/inner'), { recursive: true });
  await mkdir(path('used'));
  for (const name of ['made/inner/lib', 'used/lib']) await writeFile(path(name), '');
  await writeFile(path('used/own'), 'somebody else put it there');
  await writeFile(path('replaced'), 'a package was installed');
  const made = ['made', 'made/inner', 'made/inner/lib', 'used', 'used/lib', 'replaced', 'gone'];
  await files.keep('one', { hashes: [], made: made.map(path) });
  await files.release('one');
  t.same((await readdir(folder)).toSorted(), ['replaced', 'shipped', 'used']);
  t.same(await readdir(path('used')), ['own']);
});

t.test('a damaged list of what a replica uses is told', async (t) => {
  const folder = join(await folderFor(t), 'shipped');
  const files = await ShippedFiles.open(folder, 100);
  const hash = await ship(files, 'one', 'content');
  await files.keep('one', { hashes: [hash], made: [] });
  const list = join(folder, 'users', 'one.list');
  const bytes = await readFile(list);
  await writeFile(list, bytes.subarray(0, bytes.length - 4));
  await t.rejects(ShippedFiles.open(folder, 100), { code: 'ERR_STATE_FILE' });
  t.ok(await stat(join(folder, 'content', hash)), 'nothing is removed');
});
