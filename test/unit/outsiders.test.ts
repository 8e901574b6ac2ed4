/** What a promotion tells outsiders, with whose rights, and what is found out beforehand. */
import {
  chmodSync,
  chownSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { protectDefaults } from '../../src/api/schema.js';
import type { GroupSpec } from '../../src/capture/group-spec.js';
import {
  announce,
  announceFence,
  checkOutsiders,
  makeOutputFile,
} from '../../src/daemon/outsiders.js';

const me = { uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0 };

function folderOf(t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'replpage-outsiders-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

const spec: GroupSpec = {
  name: 'web',
  ...protectDefaults,
  stdio: null,
  pidfile: undefined,
  onPromote: undefined,
  onFence: undefined,
  vip: undefined,
  store: undefined,
  storeId: '0123456789abcdef',
  owner: { ...me, groups: [] },
};
const told = {
  ...{ pid: 10, hostPid: 2000, generation: 1, epoch: 3, exact: true },
  ...{ reason: 'killed by SIGKILL', node: 'here' },
};
const silent = () => undefined;
const quiet = { debug: silent, info: silent, warn: silent, error: silent, child: () => quiet };

t.test('outsiders are told: pid file and hook', async (t) => {
  const folder = folderOf(t);
  const pidfile = join(folder, 'web.pid');
  const seen = join(folder, 'seen');
  const onPromote = `echo "$REPLPAGE_GROUP $REPLPAGE_HOST_PID $REPLPAGE_EXACT" >'${seen}'`;
  const lines: object[] = [];
  const keep = (fields: object) => void lines.push(fields);
  const log = { debug: keep, info: keep, warn: keep, error: keep, child: () => log };
  t.same(await announce({ ...spec, pidfile, onPromote }, told, log), []);
  t.equal(lines.length, 2);
  t.equal(readFileSync(pidfile, 'utf8'), '2000\n');
  t.equal(readFileSync(seen, 'utf8'), 'web 2000 true\n');
  lines.length = 0;
  const lost = await announce({ ...spec, pidfile: '/nowhere/at/all.pid' }, told, log);
  t.match(lost, [/^--pidfile \/nowhere\/at\/all\.pid: ENOENT/]);
  t.match(lines[0], { reason: /ENOENT/ });
  lines.length = 0;
  t.match(await announce({ ...spec, onPromote: 'no\0command' }, told, log), [/null bytes/]);
  t.match(lines[0], { reason: /null bytes/ });
});

t.test('a hook is told everything, with or without an address', async (t) => {
  const seen = join(folderOf(t), 'seen');
  const command = `set -u; env | grep ^REPLPAGE_ | sort >'${seen}'; pwd >>'${seen}'`;
  const addressed = { ...spec, onPromote: command, onFence: command, vip: '10.0.0.9/24@eth0' };
  t.same(await announce(addressed, told, quiet), []);
  const promoted = [
    'REPLPAGE_EPOCH=3',
    'REPLPAGE_EVENT=promote',
    'REPLPAGE_EXACT=true',
    'REPLPAGE_GENERATION=1',
    'REPLPAGE_GROUP=web',
    'REPLPAGE_HOST_PID=2000',
    'REPLPAGE_NODE=here',
    'REPLPAGE_PID=10',
    'REPLPAGE_REASON=killed by SIGKILL',
    'REPLPAGE_VIP=10.0.0.9/24@eth0',
    '/',
    '',
  ];
  t.same(readFileSync(seen, 'utf8').split('\n'), promoted);
  t.same(await announceFence({ ...addressed, vip: undefined }, told, quiet), []);
  t.match(readFileSync(seen, 'utf8'), /REPLPAGE_EVENT=fence\n[^]*REPLPAGE_VIP=\n/);
  t.same(await announceFence({ ...spec, onPromote: 'exit 1' }, told, quiet), []);
  t.match(await announceFence({ ...spec, onFence: 'exit 3' }, told, quiet), [
    /^--on-fence exit 3: it ended with status 3$/,
  ]);
});

t.test('a hook that takes too long is ended, whatever holds its output', async (t) => {
  const began = Date.now();
  const onPromote = 'echo begun; setsid sleep 20 & sleep 20';
  const lost = await announce({ ...spec, onPromote }, told, quiet, 300);
  t.match(lost, [/it was not over after 0.3 s, and ended with SIGKILL: begun$/]);
  t.ok(Date.now() - began < 10_000);
});

const asRoot = me.uid === 0 ? {} : { skip: 'needs root' };

t.test('hooks and pid files have the rights of whoever asked', asRoot, async (t) => {
  const folder = folderOf(t);
  mkdirSync(join(folder, 'closed'), { mode: 0o700 });
  const lines: object[] = [];
  const keep = (fields: object) => void lines.push(fields);
  const log = { debug: keep, info: keep, warn: keep, error: keep, child: () => log };
  const owner = { uid: 65534, gid: 65534, groups: [] };
  const failing = await announce({ ...spec, owner, onPromote: 'id -u; id -G; exit 3' }, told, log);
  t.match(failing, [/^--on-promote .*: it ended with status 3: 65534$/]);
  const closed = { ...spec, owner, pidfile: join(folder, 'closed', 'web.pid') };
  t.match(await announce(closed, told, log), [/^--pidfile .*: it ended with status/]);
  t.ok(lines.some((line) => 'output' in line && line.output === '65534\n65534\n'));
  t.same(readdirSync(join(folder, 'closed')), []);
});

t.test('what could not be told later is refused at once', async (t) => {
  const folder = folderOf(t);
  // As PostgreSQL's postmaster.pid begins.
  const lockFile = join(folder, 'postmaster.pid');
  writeFileSync(lockFile, '4711\n1795376619\n5432\n');
  const binary = join(folder, 'binary');
  writeFileSync(binary, '47\0 11');
  const bad: [Partial<GroupSpec>, RegExp][] = [
    [{ pidfile: join(folder, 'none', 'web.pid') }, /--pidfile .*folder does not exist/],
    [{ pidfile: folder }, /--pidfile .*no file that can be replaced/],
    [{ pidfile: '/dev/null' }, /--pidfile .*no file that can be replaced/],
    [{ pidfile: lockFile }, /--pidfile .*holds more than a pid/],
    [{ pidfile: binary }, /--pidfile .*holds more than a pid/],
    [{ onPromote: 'if then' }, /--on-promote if then: the shell does not understand/],
    [{ onPromote: '/nowhere/hook now' }, /--on-promote .*no such program/],
    [{ onFence: 'if then' }, /--on-fence if then: the shell does not understand/],
  ];
  for (const [options, message] of bad) {
    const checked = checkOutsiders({ ...spec, ...options }, quiet);
    await t.rejects(checked, { code: 'ERR_BAD_REQUEST', message });
  }
  const onPromote = '/bin/echo "$REPLPAGE_HOST_PID"; cd / && A=1 true';
  await checkOutsiders({ ...spec, pidfile: join(folder, 'web.pid'), onPromote }, quiet);
  writeFileSync(join(folder, 'old.pid'), '4711');
  await checkOutsiders({ ...spec, pidfile: join(folder, 'old.pid') }, quiet);
  writeFileSync(join(folder, 'empty.pid'), '');
  await checkOutsiders({ ...spec, pidfile: join(folder, 'empty.pid') }, quiet);
  const left = ['binary', 'empty.pid', 'old.pid', 'postmaster.pid'];
  t.same(readdirSync(folder).sort(), left, 'and nothing is left behind');
});

t.test('a pid file that has become something else is left as it is', async (t) => {
  const folder = folderOf(t);
  const pidfile = join(folder, 'web.pid');
  writeFileSync(pidfile, '4711\n/var/lib/data\n');
  t.match(await announce({ ...spec, pidfile }, told, quiet), [/holds more than a pid/]);
  t.equal(readFileSync(pidfile, 'utf8'), '4711\n/var/lib/data\n');
});

t.test('a pid file keeps its mode, and its owner where that is possible', asRoot, async (t) => {
  const folder = folderOf(t);
  const ours = join(folder, 'ours.pid');
  writeFileSync(ours, '1\n');
  chownSync(ours, 65534, 65534);
  chmodSync(ours, 0o600);
  t.same(await announce({ ...spec, pidfile: ours }, told, quiet), []);
  t.match(statSync(ours), { uid: 65534, gid: 65534, mode: 0o100600 });
  t.equal(readFileSync(ours, 'utf8'), '2000\n');
  chmodSync(folder, 0o777);
  const theirs = { ...spec, owner: { uid: 65534, gid: 65534, groups: [] }, pidfile: ours };
  t.same(await announce(theirs, { ...told, hostPid: 2001 }, quiet), []);
  t.match(statSync(ours), { uid: 65534, mode: 0o100600 });
  t.equal(readFileSync(ours, 'utf8'), '2001\n');
});

t.test('a folder is tried with the rights of whoever asked', asRoot, async (t) => {
  const folder = folderOf(t);
  const owner = { uid: 65534, gid: 65534, groups: [] };
  const theirs = { ...spec, owner, pidfile: join(folder, 'web.pid') };
  await t.rejects(checkOutsiders(theirs, quiet), { message: /may not be entered/ });
  mkdirSync(join(folder, 'open'), { mode: 0o755 });
  await t.rejects(checkOutsiders({ ...theirs, pidfile: '/etc/web.pid' }, quiet), {
    message: /may not be written to/,
    advice: /user 65534/,
  });
  await checkOutsiders({ ...theirs, pidfile: '/tmp/web.pid' }, quiet);
});

t.test("an output file is never one of another user's", asRoot, async (t) => {
  const folder = folderOf(t);
  const first = { uid: 65534, gid: 65534, groups: [] };
  const path = await makeOutputFile(folder, 'web', first);
  writeFileSync(path, 'secret');
  t.equal(statSync(path).uid, 65534);
  await makeOutputFile(folder, 'web', first);
  t.equal(readFileSync(path, 'utf8'), 'secret', 'appended to, for the same user');
  await makeOutputFile(folder, 'web', { uid: 1, gid: 1, groups: [] });
  t.equal(readFileSync(path, 'utf8'), '');
  t.equal(statSync(path).uid, 1);
  t.equal(readFileSync(`${path}.65534`, 'utf8'), 'secret', 'and is not lost either');
});
