import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { describe, isSystemError, refusalsOf, ReplicationError } from '../../src/base/errors.js';
import { makeFolder } from '../../src/base/folder.js';
import { QuantileWindow } from '../../src/base/quantiles.js';
import {
  formatBytes,
  formatMs,
  formatPercent,
  formatUs,
  parseBytes,
  parseDurationMs,
  parsePercent,
} from '../../src/base/units.js';

t.test('durations, shares and sizes are read as people write them', (t) => {
  const durations: [string, number][] = [
    ['100ms', 100],
    ['250us', 0.25],
    ['1.5s', 1500],
    ['2 min', 120_000],
    [' 1h ', 3_600_000],
  ];
  for (const [text, ms] of durations) t.equal(parseDurationMs(text), ms, text);
  t.equal(parsePercent('5%'), 0.05);
  t.equal(parsePercent('0.5 %'), 0.005);
  t.equal(parsePercent('100%'), 1);
  t.equal(parseBytes('256MiB'), 256 * 1024 ** 2);
  t.equal(parseBytes('1.5GiB'), 1.5 * 1024 ** 3);
  t.equal(parseBytes('0B'), 0);
  t.end();
});

t.test('what is not understood is refused with what would be right', (t) => {
  for (const text of ['', '100', 'ms', '-1ms', '1e3ms', '100 parsecs', '1ms2', 'NaNms', '0x1ms']) {
    t.throws(() => parseDurationMs(text), { code: 'ERR_USAGE', advice: /100ms/ }, text);
  }
  for (const text of ['5', '0%', '101%', '-5%', '%', 'five%']) {
    t.throws(() => parsePercent(text), { code: 'ERR_USAGE' }, text);
  }
  for (const text of ['256', '256MB', '256 mib', 'GiB', '__proto__', '1constructor']) {
    t.throws(() => parseBytes(text), { code: 'ERR_USAGE' }, text);
  }
  t.end();
});

t.test('figures are printed with a unit that fits', (t) => {
  t.equal(formatBytes(0), '0 B');
  t.equal(formatBytes(4096), '4.0 KiB');
  t.equal(formatBytes(1024 ** 3), '1.0 GiB');
  t.equal(formatBytes(300 * 1024 ** 2), '300 MiB');
  t.equal(formatUs(870), '870 us');
  t.equal(formatUs(1234), '1.23 ms');
  t.equal(formatUs(12_340), '12.3 ms');
  t.equal(formatMs(4100), '4.10 s');
  t.equal(formatPercent(0.0512), '5.1%');
  t.end();
});

t.test('quantiles are exact within their window', (t) => {
  const window = new QuantileWindow(100);
  t.same(window.summary(), { last: 0, p50: 0, p99: 0, max: 0 });
  for (let i = 1; i <= 100; i++) window.add(i);
  t.same(window.summary(), { last: 100, p50: 50, p99: 99, max: 100 });
  for (let i = 0; i < 100; i++) window.add(7);
  t.same(window.summary(), { last: 7, p50: 7, p99: 7, max: 7 }, 'old samples leave');
  t.equal(window.count, 200);
  t.end();
});

t.test('errors say the whole chain, and carry refusals that are well formed', (t) => {
  const cause = Object.assign(new Error('Operation not permitted'), { code: 'EPERM' });
  const error = new ReplicationError('ERR_NATIVE', 'cannot protect process 7', { cause });
  t.equal(describe(error), 'cannot protect process 7: Operation not permitted');
  t.equal(describe('text'), 'text');
  t.ok(isSystemError(cause));
  t.notOk(isSystemError(new Error('plain')));
  const good = { pid: 7, object: 'fd 3', kind: 'io_uring', why: 'its ring cannot be copied' };
  t.same(refusalsOf({ refusals: [good, null, { pid: 'x' }, { ...good, why: 3 }] }), [good]);
  t.same(refusalsOf({ refusals: 'many' }), []);
  t.same(refusalsOf(undefined), []);
  t.end();
});

t.test('folders are made with those above them, or it is said why not', async (t) => {
  const top = mkdtempSync(join(tmpdir(), 'replpage-base-'));
  t.teardown(() => rmSync(top, { recursive: true }));
  const deep = join(top, 'a', 'b', 'c');
  await makeFolder(deep, 0o700, 'it');
  await makeFolder(deep, 0o755, 'it');
  t.equal(statSync(deep).mode & 0o777, 0o700, 'one that is there stays as it is');
  writeFileSync(join(top, 'file'), '');
  for (const path of [join(top, 'file'), join(top, 'file', 'x'), '/proc/nope', '/proc/nope/x']) {
    const message = /^cannot make the log folder/;
    await t.rejects(makeFolder(path, 0o755, 'the log folder'), { code: 'ERR_FOLDER', message });
  }
});
