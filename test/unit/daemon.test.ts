import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { protectDefaults } from '../../src/api/schema.js';
import type { EventRecord } from '../../src/api/schema.js';
import { systemClock } from '../../src/base/clock.js';
import type { Log } from '../../src/base/log.js';
import type { GroupSpec } from '../../src/capture/group-spec.js';
import { newGroup, type GroupCore, type Phase } from '../../src/capture/group-state.js';
import { readConfig, type DaemonFlags } from '../../src/daemon/config.js';
import { replaceFile } from '../../src/base/durable-file.js';
import { EventRing } from '../../src/daemon/event-ring.js';
import { takeLock } from '../../src/daemon/lock.js';
import {
  ancestry,
  filesShared,
  namesInTree,
  readProcess,
  serviceOf,
} from '../../src/daemon/process-facts.js';
import { parseKeeperName, recover } from '../../src/daemon/recover.js';
import {
  readState,
  writeState,
  type DaemonState,
  type GroupRecord,
} from '../../src/daemon/state-file.js';
import { StateStore } from '../../src/daemon/state-store.js';
import {
  checkTarget,
  fileRuleWarnings,
  warningsFor,
  type TargetRules,
} from '../../src/daemon/target-check.js';
import { askKeeper, parseKeeperStatus, type KeeperStatus } from '../../src/native/keeper-status.js';

const me = { pid: process.pid, uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0 };

function folderOf(t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'replpage-daemon-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

async function waitFor(what: string, condition: () => boolean): Promise<void> {
  const deadline = Date.now() + 5000;
  while (!condition()) {
    if (Date.now() > deadline) throw new Error(`waited in vain for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
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
  owner: { uid: me.uid, gid: me.gid, groups: [] },
};

function record(phase: Phase, changes: Partial<GroupCore> = {}): GroupRecord {
  return { spec, core: { ...newGroup(1000, 4, 3), phase, ...changes }, startTime: '77' };
}

t.test('configuration: flag before variable before default', (t) => {
  const plain = readConfig({}, {});
  t.match(plain, {
    socketPath: '/run/replpage/replpage.sock',
    stateDir: '/var/lib/replpage',
    stagingBytesMax: 256 * 1024 ** 2,
    freezeDeadlineUs: 20_000,
  });
  const moved = readConfig({}, { REPLPAGE_RUNTIME_DIR: '/tmp/x' });
  t.match(moved, { keepersDir: '/tmp/x/keepers', stateDir: '/tmp/x/state', logDir: '/tmp/x/log' });
  const flags = { runtimeDir: '/a', stateDir: '/b', freezeDeadline: '5ms', logLevel: 'debug' };
  const both = readConfig(flags, { REPLPAGE_RUNTIME_DIR: '/x', REPLPAGE_STAGING_MAX: '64MiB' });
  t.match(both, { runtimeDir: '/a', stateDir: '/b', freezeDeadlineUs: 5000, logLevel: 'debug' });
  t.equal(both.stagingBytesMax, 64 * 1024 ** 2);
  const out: [DaemonFlags, RegExp][] = [
    [{ stagingMax: 'lots' }, /^--staging-max: "lots"/],
    [{ stagingMax: '1B' }, /^--staging-max: 1 B is not possible/],
    [{ stagingMax: '512MiB' }, /^--staging-max/],
    [{ spillMax: '2TiB' }, /^--spill-max/],
    [{ freezeDeadline: '0ms' }, /^--freeze-deadline/],
    [{ freezeDeadline: '1h' }, /^--freeze-deadline/],
    [{ runtimeDir: '' }, /^--runtime-dir: the path is empty/],
    [{ store: '' }, /^--store: the path is empty/],
    [{ runtimeDir: `/${'x'.repeat(100)}` }, /^--runtime-dir: .* too long/],
  ];
  for (const [flag, message] of out) {
    t.throws(() => readConfig(flag, {}), { code: 'ERR_USAGE', message });
  }
  const unset = { REPLPAGE_RUNTIME_DIR: '', REPLPAGE_STATE_DIR: '' };
  t.match(readConfig({}, unset), { runtimeDir: '/run/replpage', stateDir: '/var/lib/replpage' });
  const variable = { REPLPAGE_FREEZE_DEADLINE: 'x' };
  t.throws(() => readConfig({}, variable), { message: /^REPLPAGE_FREEZE_DEADLINE: "x"/ });
  t.throws(() => readConfig({ logLevel: 'loud' }, {}), { code: 'ERR_USAGE', advice: /debug/ });
  t.end();
});

t.test('a file is replaced whole, and with its mode', async (t) => {
  const folder = folderOf(t);
  const path = join(folder, 'groups.json');
  writeFileSync(`${path}.new`, 'left over from a crash');
  await replaceFile(path, 'one', 0o600);
  await replaceFile(path, 'two', 0o600);
  t.equal(readFileSync(path, 'utf8'), 'two');
  t.equal(statSync(path).mode & 0o777, 0o600);
  t.same(readdirSync(folder), ['groups.json']);
});

t.test('the state file comes back as it was, a damaged one is refused', async (t) => {
  const path = join(folderOf(t), 'groups.json');
  t.equal(await readState(path), undefined);
  const state = { bootId: 'b', groups: [record({ kind: 'protected' })] };
  await writeState(path, state);
  t.same(await readState(path), JSON.parse(JSON.stringify({ ...state })));
  const whole = readFileSync(path, 'utf8');
  const damages: [string, RegExp][] = [
    ['', /does not begin/],
    ['{"version": 1}', /does not begin/],
    [whole.slice(0, whole.length / 2), /instead of/],
    [whole.replace('replpage-groups 2', 'replpage-groups 3'), /version is 3, known is 2/],
    [whole.replace('"generation": 4', '"generation": 5'), /checksum is wrong/],
    [`${whole}x`, /instead of/],
    [whole.replace(/[0-9a-f]{64}/, '0'.repeat(64)), /checksum is wrong/],
  ];
  for (const [damage, why] of damages) {
    writeFileSync(path, damage);
    await t.rejects(readState(path), { code: 'ERR_STATE_FILE', message: why });
  }
  for (let at = 0; at < whole.length; at++) {
    const bytes = Buffer.from(whole);
    bytes[at] = (bytes[at] ?? 0) ^ 1;
    writeFileSync(path, bytes);
    await t.rejects(readState(path), { code: 'ERR_STATE_FILE' }, `a bit of byte ${at}`);
  }
});

t.test('what is whole but makes no sense is refused too', async (t) => {
  const path = join(folderOf(t), 'groups.json');
  const good = record({ kind: 'protected' });
  const bad: unknown[] = [
    null,
    { bootId: 1, groups: [] },
    { bootId: 'b', groups: {} },
    { bootId: 'b', groups: [null] },
    { bootId: 'b', groups: [{ ...good, startTime: 7 }] },
    { bootId: 'b', groups: [{ ...good, core: { ...good.core, generation: '4' } }] },
    { bootId: 'b', groups: [{ ...good, core: { ...good.core, phase: null } }] },
  ];
  for (const state of bad) {
    await writeState(path, state as DaemonState);
    await t.rejects(readState(path), { code: 'ERR_STATE_FILE' });
  }
});

function storeOf(path: string) {
  const logged: string[] = [];
  const note = (_fields: object, message: string): unknown => logged.push(message);
  const log: Log = { debug: note, info: note, warn: note, error: note, child: () => log };
  const groups = [record({ kind: 'protected' })];
  const current = () => ({ bootId: 'b', groups });
  return { logged, store: new StateStore({ path, clock: systemClock, log, current, retryMs: 20 }) };
}

t.test('a state file that cannot be read is put aside, and said', async (t) => {
  const folder = folderOf(t);
  const path = join(folder, 'groups.json');
  writeFileSync(path, 'replpage-groups 7 0 ' + '0'.repeat(64) + '\n');
  const { store, logged } = storeOf(path);
  t.equal(await store.load(), undefined);
  t.match(store.warnings, [/version is 7.*put aside as .*groups\.json\.unread-.*unprotected/]);
  t.same(logged, ['groups could not be read']);
  const aside = readdirSync(folder);
  t.equal(aside.length, 1);
  t.match(aside[0], /unread-/);
  store.write();
  await store.settled();
  t.match(await readState(path), { groups: [{ spec: { name: 'web' } }] });
  t.equal(readdirSync(folder).length, 2, 'what could not be read is still there');
  await store.close();
});

t.test('a state file that cannot be written is said, and tried again', async (t) => {
  const folder = folderOf(t);
  const path = join(folder, 'groups.json');
  const { store, logged } = storeOf(path);
  mkdirSync(join(path, 'in-the-way'), { recursive: true });
  store.write();
  await store.settled();
  t.match(store.warnings, [/could not be recorded .*tried again/]);
  t.same(readdirSync(folder), ['groups.json'], 'no half file is left');
  rmSync(path, { recursive: true });
  await waitFor('the next try', () => store.warnings.length === 0);
  t.match(await readState(path), { bootId: 'b' });
  t.same(logged, ['groups could not be recorded', 'groups are recorded again']);
  await store.close();
});

t.test('the event ring is bounded and tells its listeners', (t) => {
  const ring = new EventRing(3, systemClock);
  const heard: EventRecord[] = [];
  const stop = ring.listen((event) => heard.push(event));
  for (let i = 1; i <= 5; i++) ring.add('web', 'event', String(i));
  stop();
  ring.add('web', 'event', '6');
  t.same(
    ring.since(0).map(({ id, why }) => [id, why]),
    [
      [4, '4'],
      [5, '5'],
      [6, '6'],
    ],
  );
  t.equal(ring.since(5).length, 1);
  t.equal(heard.length, 5);
  t.end();
});

const keeper = (state: string, changes: Partial<KeeperStatus> = {}): KeeperStatus => ({
  state,
  pid: 10,
  hostPid: 2000,
  epoch: 12,
  lazyPages: 0,
  coldPages: 0,
  damagedPages: 0,
  waitingFaults: 0,
  waitingUs: 0,
  refillUs: 0,
  storeTrouble: '',
  residentBytes: 4096,
  exited: false,
  status: undefined,
  ...changes,
});

t.test('a restarted daemon protects what still runs, at a generation of its own', (t) => {
  const facts = { sameBoot: true, primaryAlive: true, keepers: [] };
  const again = recover(record({ kind: 'protected' }, { crashes: 2, epoch: 9 }), facts);
  t.match(again, { kind: 'protect', core: { hostPid: 1000, generation: 5, resumed: true } });
  t.match(again.core, { crashes: 2, phase: { kind: 'protecting' } });
  const old = { generation: 9, socket: '/k/web.9.sock', status: keeper('standby') };
  const later = recover(record({ kind: 'protected' }), { ...facts, keepers: [old] });
  t.match(later.core, { hostPid: 1000, generation: 10 }, 'no name is used twice');
  t.end();
});

t.test('a promotion that no daemon saw is found through the keeper', (t) => {
  const status = keeper('promoted');
  const found = { generation: 4, socket: '/k/web.4.sock', status };
  const facts = { sameBoot: true, primaryAlive: false, keepers: [found] };
  const whole = recover(record({ kind: 'protected' }), facts);
  t.match(whole, { kind: 'protect', core: { hostPid: 2000, generation: 5 } });
  const filling = { ...found, status: keeper('promoted', { lazyPages: 8 }) };
  const wait = recover(record({ kind: 'protected' }), { ...facts, keepers: [filling] });
  t.match(wait, { kind: 'wait', keeperSocket: '/k/web.4.sock', core: { hostPid: 2000 } });
  t.same(wait.core.phase, { kind: 'promoted', lazyPages: 8 });
  const exited = { ...found, status: keeper('promoted', { exited: true }) };
  const gone = recover(record({ kind: 'protected' }), { ...facts, keepers: [exited] });
  t.match(gone, { kind: 'keep', core: { phase: { kind: 'ended' } } });
  t.end();
});

t.test('what ended, or was given up, stays so; a new boot promotes nothing', (t) => {
  const alive = { sameBoot: true, primaryAlive: true, keepers: [] };
  const over: Phase[] = [
    { kind: 'ended', reason: 'x' },
    { kind: 'unprotected', reason: 'x' },
    { kind: 'detached' },
  ];
  for (const phase of over) {
    t.match(recover(record(phase), alive), { kind: 'keep', core: { phase } });
  }
  const dead = recover(record({ kind: 'protected' }), { ...alive, primaryAlive: false });
  t.match(dead.core.phase, { kind: 'ended', reason: /no daemon watched/ });
  const boot = recover(record({ kind: 'protected' }), { ...alive, sameBoot: false });
  t.match(boot.core.phase, { kind: 'ended', reason: /restarted/ });
  t.same(parseKeeperName('a.b-2.17.sock'), { name: 'a.b-2', generation: 17 });
  t.equal(parseKeeperName('a.sock'), undefined);
  t.end();
});

t.test('a keeper is asked over its socket; silence and nonsense are errors', async (t) => {
  const folder = folderOf(t);
  const answers: Record<string, (write: (text: string) => void) => void> = {
    good: (write) => {
      const line = `${JSON.stringify(keeper('promoted'))}\n`;
      write(line.slice(0, 10));
      setTimeout(() => write(line.slice(10)), 10);
    },
    nonsense: (write) => write('hello\n'),
    incomplete: (write) => write('{"state":"promoted"}\n'),
    silent: () => undefined,
    endless: (write) => write('x'.repeat(100_000)),
  };
  for (const [name, behave] of Object.entries(answers)) {
    const server = createServer((socket) => {
      socket.on('error', () => undefined);
      socket.once('data', (request) => {
        t.equal(request.toString(), 'status\n');
        behave((text) => socket.write(text));
      });
    });
    const path = join(folder, `${name}.sock`);
    await new Promise<void>((resolve) => server.listen(path, resolve));
    const asked = askKeeper(path, 200);
    if (name === 'good') t.match(await asked, keeper('promoted'));
    else await t.rejects(asked, { code: name === 'silent' ? 'ERR_TIMEOUT' : 'ERR_NATIVE' }, name);
    server.close();
  }
  await t.rejects(askKeeper(join(folder, 'none.sock')), { code: 'ENOENT' });
  t.throws(() => parseKeeperStatus('{"state":"x","pid":1.5}', '/k'), { code: 'ERR_NATIVE' });
});

t.test('what /proc says about a process is read right', (t) => {
  const facts = readProcess(process.pid);
  t.match(facts, { pid: process.pid, parent: process.ppid, threadGroup: process.pid, tracer: 0 });
  t.equal(facts?.kernelThread, false);
  t.match(facts?.executable, /node/);
  t.match(facts?.startTime, /^\d+$/);
  t.equal(readProcess(2 ** 22 + 1), undefined);
  t.same(ancestry(process.pid).slice(0, 2), [process.pid, process.ppid]);
  t.equal(ancestry(process.pid).at(-1), 1);
  t.end();
});

t.test('a process tree is named, each by its own pid', async (t) => {
  const child = spawn('sleep', ['60'], { stdio: 'ignore' });
  t.teardown(() => child.kill('SIGKILL'));
  await once(child, 'spawn');
  const names = namesInTree(process.pid);
  t.equal(names.get(child.pid ?? 0), 'sleep');
  t.equal(names.get(process.pid), readProcess(process.pid)?.name);
  t.same([...namesInTree(2 ** 22 + 1)], []);
});

t.test('files that are shared as memory are told apart by their file system', async (t) => {
  const folder = folderOf(t);
  const paths = [join(folder, 'on-disk'), `/dev/shm/replpage-test-${process.pid}`];
  t.teardown(() => paths.forEach((path) => rmSync(path, { force: true })));
  const program =
    'import mmap, sys, time\n' +
    'maps = []\n' +
    'for path in sys.argv[1:]:\n' +
    '  file = open(path, "w+b"); file.truncate(4096); maps.append(mmap.mmap(file.fileno(), 4096))\n' +
    'print("ready", flush=True); time.sleep(60)\n';
  const child = spawn('python3', ['-c', program, ...paths]);
  t.teardown(() => child.kill('SIGKILL'));
  await once(child.stdout, 'data');
  const shared = filesShared(child.pid ?? 0);
  t.same(shared.map(({ path }) => path).sort(), [...paths].sort());
  t.match(
    shared.find(({ path }) => path === paths[1]),
    { inMemory: true },
  );
  const [onDisk, inMemory] = fileRuleWarnings(
    ['/log'],
    [
      { path: '/data', inMemory: false },
      { path: '/dev/shm/x', inMemory: true },
    ],
  );
  t.match(onDisk, /^it has \/log, \/data open for writing/);
  t.match(inMemory, /^it shares memory through \/dev\/shm\/x, .*--files keep/);
});

t.test('what cannot be a target is refused with its own reason', async (t) => {
  const child = spawn('sleep', ['60'], { stdio: 'ignore' });
  t.teardown(() => child.kill('SIGKILL'));
  await once(child, 'spawn');
  const pid = child.pid ?? 0;
  const rules: TargetRules = {
    mayTrace: () => ({ allowed: true }),
    keeperPath: '/nowhere/keeper',
    daemonPid: process.pid,
    groupOf: () => undefined,
  };
  t.match(checkTarget(rules, me, pid), { pid, name: 'sleep' });
  const check = (changes: Partial<TargetRules>, target = pid, caller = me) => {
    return () => checkTarget({ ...rules, ...changes }, caller, target);
  };
  t.throws(check({}, 2 ** 22 - 3), { code: 'ERR_NO_PROCESS', message: /no such process/ });
  const mayNot = () => ({ allowed: false, reason: 'not the same user' });
  t.throws(check({ mayTrace: mayNot }), { code: 'ERR_DENIED', message: /not the same user/ });
  t.throws(check({}, 2), { code: 'ERR_REFUSED', message: /kernel thread/ }, 'a kernel thread');
  t.throws(check({}, process.pid), { code: 'ERR_REFUSED', message: /daemon itself/ });
  t.throws(check({}, process.ppid), { code: 'ERR_REFUSED', message: /daemon itself/ });
  const caller = { ...me, pid };
  t.throws(check({}, pid, caller), { code: 'ERR_REFUSED', message: /this very command/ });
  const groupOf = (one: number) => (one === process.pid ? 'parents' : undefined);
  t.throws(check({ groupOf }), { code: 'ERR_PROTECTED_ALREADY', message: /group parents/ });
  const keeperPath = readProcess(pid)?.executable ?? '';
  t.throws(check({ keeperPath }), { code: 'ERR_REFUSED', message: /part of replpage/ });
  const thread = readdirSync(`/proc/${process.pid}/task`).map(Number).at(-1) ?? 0;
  t.throws(check({}, thread), { code: 'ERR_REFUSED', message: /is a thread of process/ });
  const noPidfd = () => ({ allowed: false, reason: 'pidfd_open: No such file or directory' });
  t.throws(check({ mayTrace: noPidfd }, thread), { message: /is a thread of process/ });
  child.kill('SIGKILL');
});

t.test("a service unit's main process is warned about, with what to do", (t) => {
  const facts = readProcess(process.pid);
  if (facts === undefined) throw new Error('no facts of ourselves');
  const cgroups = ['1:name=systemd:/system.slice/redis-server.service', '0::/'];
  const main = { ...facts, parent: 1, cgroups };
  t.equal(serviceOf(main), 'redis-server.service');
  t.match(warningsFor(main)[0], /systemctl edit redis-server\.service/);
  t.equal(serviceOf({ ...main, cgroups: ['0::/user.slice/session-1.scope'] }), undefined);
  t.same(warningsFor({ ...main, parent: process.pid }), []);
  t.end();
});

t.test('one daemon at a time: the lock lasts as long as its holder', async (t) => {
  const path = join(folderOf(t), 'lock');
  const lock = await takeLock(path);
  await t.rejects(takeLock(path), { code: 'ERR_DAEMON_RUNS' });
  await lock.close();
  const next = await takeLock(path);
  await next.close();
});
