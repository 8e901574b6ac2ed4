/** What the daemon says of a page store that it was given and cannot use. */
import { chmodSync, mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { troubleOfStore } from '../../src/daemon/store-look.js';

t.test('a page store that is not there, or is none, is told', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'replpage-look-'));
  t.equal(await troubleOfStore(folder), undefined);
  t.equal(await troubleOfStore(join(folder, 'no one')), 'there is no such directory');
  const file = join(folder, 'file');
  writeFileSync(file, '');
  t.equal(await troubleOfStore(file), 'it is no directory');
  chmodSync(folder, 0o500);
  const expected = process.getuid?.() === 0 ? undefined : 'it is not writable';
  t.equal(await troubleOfStore(folder), expected);
});
