import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import type { GroupStatus } from '../../src/api/schema.js';
import { encodeCommand, ReplyParser } from '../../src/cli/demo/resp.js';
import { optionsText, protectCommand } from '../../src/cli/protect-options.js';
import { progressLine } from '../../src/cli/progress.js';
import { groupText, statusText } from '../../src/cli/status.js';
import { formatTable } from '../../src/cli/table.js';

t.test('answers of redis are cut out of the stream wherever it is split', (t) => {
  const stream = Buffer.from(
    '+OK\r\n:42\r\n$5\r\nhe\r\no\r\n$-1\r\n-ERR no\r\n*2\r\n$1\r\na\r\n:7\r\n*0\r\n',
  );
  const expected = ['OK', 42, 'he\r\no', null, new Error('ERR no'), ['a', 7], []];
  for (let at = 0; at <= stream.length; at++) {
    const parser = new ReplyParser();
    const replies = [...parser.push(stream.subarray(0, at)), ...parser.push(stream.subarray(at))];
    if (replies.length !== expected.length) t.fail(`split at ${at}: ${replies.length} replies`);
    if (at % 10 === 0) t.same(replies, expected, `split at ${at}`);
  }
  t.throws(() => new ReplyParser().push(Buffer.from('HTTP/1.1 400\r\n')));
  t.equal(encodeCommand(['SET', 'ä', '']), '*3\r\n$3\r\nSET\r\n$2\r\nä\r\n$0\r\n\r\n');
  t.end();
});

t.test('a progress line has bytes, rate and time left', (t) => {
  const line = progressLine(512 * 1024 ** 2, 1024 ** 3, 500);
  t.equal(line, '[############------------] 512 MiB of 1.0 GiB, 1.0 GiB/s, 0.5 s left');
  t.match(progressLine(0, 0, 0), /^\[-{24}\] 0 B of 0 B/);
  t.match(progressLine(9, 3, 10), /^\[#{24}\] 9 B, changes included, 900 B\/s$/);
  t.end();
});

const group: GroupStatus = {
  name: 'redis',
  state: 'lagging',
  node: 'n',
  details: true,
  reason: 'a thread is in D state',
  pid: 12,
  hostPid: 3456,
  running: true,
  generation: 2,
  epoch: 99,
  lagMs: 120,
  pauseUs: { last: 400, p50: 390, p99: 1200, max: 2400 },
  memory: {
    primaryBytes: 1024 ** 3,
    residentBytes: 1024 ** 3,
    coldBytes: 0,
    absentBytes: 0,
    ram: {
      replicaBytes: 1024 ** 3,
      keeperBytes: 1024 ** 2,
      pagerBytes: 0,
      stagingBytes: 1024 ** 2,
      indexBytes: 0,
      totalBytes: 1026 * 1024 ** 2,
    },
  },
  ram: 'all',
  coldAfterMs: 30_000,
  store: null,
  paging: null,
  refill: null,
  replicas: [],
  interval: { ms: 100, askedMs: 100, boundBy: 'asked', why: 'as asked' },
  overhead: { budget: 0.05, used: 0.01 },
  maxPauseMs: 50,
  epochs: { committed: 98, abandoned: 1 },
  lastEpoch: null,
  progress: null,
  tracker: 'uffd-wp',
  trackerAsked: 'auto',
  attach: 'always',
  onExit: 'end',
  files: 'refuse',
  retries: { allowed: 3, left: 2 },
  stdio: null,
  pidfile: '/run/redis.pid',
  onPromote: null,
  onFence: null,
  vip: null,
  to: null,
  shipFiles: 'mapped',
  promotion: null,
  warnings: ['mind this'],
  counters: {},
};

t.test('status is a table of groups, and all of one group', (t) => {
  const daemon = { pid: 1, uptimeMs: 1, version: '0', warnings: [] };
  const hidden = { name: 'other', state: 'protected', node: 'n', details: false };
  const table = statusText({ node: 'n', daemon, groups: [group, hidden] });
  t.match(table, /^GROUP +STATE +HOST PID +OWN PID/);
  t.match(table, /redis +lagging +3456 +12 +99 +120 ms +390 us +1\.0 GiB +1\.0 GiB$/m);
  t.match(table, /other +protected +- +-/);
  t.match(statusText({ node: 'n', daemon, groups: [] }), /no groups/);
  const whole = groupText(group);
  t.match(whole, /state +lagging: a thread is in D state/);
  t.match(whole, /retries +2 of 3 crashes left/);
  t.match(whole, /warning +mind this/);
  t.match(whole, /takes +1\.0 GiB of RAM: replica 1\.0 GiB, keeper 1\.0 MiB, .*index 0 B/);
  t.match(whole, /process +3456 \(to kill, .*itself.* 12/);
  t.match(whole, /pid file +\/run\/redis\.pid/);
  t.match(table, /^redis is lagging: a thread is in D state$/m);
  const memory = { ...group.memory, residentBytes: 3 * 1024 ** 2, coldBytes: 7 * 1024 ** 2 };
  const paged = statusText({ node: 'n', daemon, groups: [{ ...group, memory }] });
  t.match(paged, /1\.0 GiB +3\.0 MiB, 7\.0 MiB cold$/m);
  const copying = { ...group, progress: { bytes: 1024, bytesTotal: 4096 } };
  t.match(statusText({ node: 'n', daemon, groups: [copying] }), /1\.0 KiB of 4\.0 KiB copied/);
  t.equal(
    formatTable([
      ['a', 'b'],
      ['ccc', ''],
    ]),
    'a    b\nccc',
  );
  t.end();
});

t.test('a detached group can be protected again as it was', (t) => {
  const options = {
    pidfile: "/run/it's.pid",
    onExit: 'promote',
    maxPauseMs: 0.5,
    trackerAsked: 'auto',
  };
  t.equal(
    protectCommand({ ...group, ...options }),
    'replpage protect 3456 --name redis --max-pause 0.5ms --on-exit promote --stdio null ' +
      "--pidfile '/run/it'\\''s.pid'",
  );
  const text = optionsText(group, ['overhead', 'retries', 'onPromote']);
  t.equal(text, '--overhead 5% --retries 3', 'what there is not is left out');
  t.end();
});

const main = join(import.meta.dirname, '../../dist/cli/main.js');
const built = existsSync(main) ? {} : { skip: 'dist/ is not built: npm run build:ts' };

t.test('the command line: exit status, stdout and stderr', built, (t) => {
  const runtimeDir = mkdtempSync(join(tmpdir(), 'replpage-cli-'));
  t.teardown(() => rmSync(runtimeDir, { recursive: true }));
  const run = (...args: string[]) =>
    spawnSync(process.execPath, [main, ...args], {
      encoding: 'utf8',
      env: { ...process.env, REPLPAGE_RUNTIME_DIR: runtimeDir },
    });
  const cases: [string[], number, RegExp, RegExp][] = [
    [['--version'], 0, /^\d+\.\d+\.\d+\n$/, /^$/],
    [['--help'], 0, /Exit status:/, /^$/],
    [['status'], 69, /^$/, /no daemon answers at .*\n +what to do: start one as root/],
    [['status', '--json'], 69, /^\{"error":\{"code":"ERR_NO_DAEMON"/, /^$/],
    [['promote', 'x', '--json'], 69, /"ERR_NO_DAEMON"/, /^$/],
    [['events'], 69, /^$/, /no daemon answers/],
    [['explode'], 64, /^$/, /unknown command/],
    [['explode', '--help'], 64, /^$/, /unknown command 'explode'\n +what to do: replpage --help/],
    [['protect'], 64, /^$/, /missing required argument.*\n +what to do: replpage protect --help/],
    [['protect', '1', '2'], 64, /^$/, /what to do: give one pid, the root of the tree/],
    [['protect', '1', '--store', ''], 64, /^$/, /--store: the path is empty/],
    [['protect', '1', '--pidfile='], 64, /^$/, /--pidfile: the path is empty/],
    [['inspect', 'x', '--svg', ''], 64, /^$/, /--svg: the path is empty/],
    [['status', '--runtime-dir', '/etc/passwd'], 69, /^$/, /cannot reach a daemon at .*ENOTDIR/],
    [['protect', 'x'], 64, /^$/, /pid: "x" is not a whole number/],
    [['protect', '0'], 64, /^$/, /pid must be/],
    [['protect', '99999999'], 66, /^$/, /no such process/],
    [['protect', '1', '--retries', 'x'], 64, /^$/, /^replpage: --retries: "x" is not/],
    [['protect', '1', '--epoch', '1ms'], 64, /^$/, /--epoch must be between 10 ms and 60 s/],
    [['status', '..'], 64, /^$/, /no name of a group/],
    [['status', '--foo', '--json'], 64, /^\{"error":\{"code":"ERR_USAGE"/, /^$/],
    [['status', '--runtime-dir', `/${'x'.repeat(120)}`], 64, /^$/, /too long for a socket/],
    [['protect', '1', '--epoch', '100'], 64, /^$/, /--epoch: "100" is not understood/],
    [['protect', '1', '--overhead', '5'], 64, /^$/, /such as 5%/],
    [['protect', '1', '--no-such', 'x'], 64, /^$/, /unknown option/],
    [['demo', '--ram', '300%'], 64, /^$/, /--ram must be all, hot, or a share/],
    [['demo', '--size', 'huge'], 64, /^$/, /--size: "huge" is not understood/],
  ];
  for (const [args, status, stdout, stderr] of cases) {
    const done = run(...args);
    const title = `replpage ${args.join(' ')}`;
    t.equal(done.status, status, title);
    t.match(done.stdout, stdout, `${title}: stdout`);
    t.match(done.stderr, stderr, `${title}: stderr`);
  }
  t.end();
});
