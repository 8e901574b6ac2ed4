/** The commands, as a user types them, and what they say about processes that cannot be protected. */
import { once } from 'node:events';
import { chown, mkdir, readFile } from 'node:fs/promises';
import t from 'tap';
import type { EventRecord, GroupStatus } from '../../src/api/schema.js';
import { isRunning, sendSignal, statusField } from '../support/processes.js';
import { cliPath, whyNoEngine } from '../support/repository.js';
import { onStage, startVictim } from '../support/on-stage.js';
import { buildTools } from '../support/victim.js';
import { waitFor } from '../support/wait-for.js';

const skip = whyNoEngine() ?? false;

t.test('a process that cannot be protected gets a clear error', { skip }, (t) =>
  onStage(t, 'bad-pids', async (stage) => {
    await stage.startDaemon();
    const tools = await buildTools();
    const victim = await startVictim(stage, 'memory_model');

    const missing = await stage.refusal('protect', '4194303');
    t.equal(missing.code, 'ERR_NO_PROCESS');
    t.match(missing.message, /4194303/);

    const kernelThread = await stage.refusal('protect', '2');
    t.match(kernelThread.message, /kernel thread/);

    const daemon = await stage.refusal('protect', String(stage.daemonPid));
    t.match(daemon.message, /daemon|replpage/);

    const ours = await stage.refusal('protect', String(process.pid));
    t.match(ours.message, /tree|itself|replpage/);

    const tracer = stage.spawn(`${tools}/interrupter`, [String(victim.pid), '60000']);
    await waitFor(
      async () => (await statusField(victim.pid, 'TracerPid')) === String(tracer.pid),
      5000,
      'the tracer does not attach',
    );
    const traced = await stage.refusal('protect', String(victim.pid));
    t.match(traced.message, /trace/);
    t.match(traced.message, new RegExp(String(tracer.pid)), 'it names the tracer');
    const gone = once(tracer, 'exit');
    tracer.kill('SIGKILL');
    await gone;

    await stage.protect(victim.pid, 'main');
    const twice = await stage.refusal('protect', String(victim.pid), '--name', 'other');
    t.equal(twice.code, 'ERR_PROTECTED_ALREADY');
    t.match(twice.message, /main/, 'it names the group');
    const sameName = await startVictim(stage, 'clocks');
    t.equal(
      (await stage.refusal('protect', String(sameName.pid), '--name', 'main')).code,
      'ERR_GROUP_EXISTS',
    );
    await victim.waitForRounds(20);

    for (const [args, status] of [
      [['protect', 'twelve'], 64],
      [['protect', String(sameName.pid), '--overhead', 'much'], 64],
      [['protect', String(sameName.pid), '--attach', 'sometimes'], 64],
      [['frobnicate'], 64],
      [['status', 'nobody-knows-it'], 66],
      [['unprotect', 'nobody-knows-it'], 66],
    ] as const) {
      const result = await stage.command(...args);
      t.equal(result.status, status, `replpage ${args.join(' ')}: ${result.stderr.split('\n')[0]}`);
    }
  }),
);

t.test('who may not trace a process may not protect it', { skip }, (t) =>
  onStage(t, 'rights', async (stage) => {
    await stage.startDaemon();
    const victim = await startVictim(stage, 'clocks');
    const nobody = 65534;
    await chown(stage.path(), nobody, nobody);
    await chown(stage.path('run', 'replpage.sock'), 0, nobody);
    const asNobody = ['--reuid', '65534', '--regid', '65534', '--clear-groups', process.execPath];
    const { status, stdout } = await stage.run('setpriv', [
      ...asNobody,
      ...[cliPath, 'protect', String(victim.pid), '--json'],
    ]);
    t.equal(status, 77, stdout);
    t.match(stdout, /ERR_DENIED/);
    const own = stage.spawn('setpriv', [...asNobody, '-e', 'setInterval(() => {}, 1000)']);
    await waitFor(
      async () => (await statusField(own.pid ?? 0, 'Uid'))?.startsWith('65534') ?? false,
      10_000,
      'nobody has no process',
    );
    const mine = await stage.run('setpriv', [
      ...asNobody,
      ...[cliPath, 'protect', String(own.pid), '--name', 'own', '--json'],
    ]);
    t.equal(mine.status, 0, mine.stdout);
    await stage.protect(victim.pid, 'root-owned');
    const seen = await stage.run('setpriv', [...asNobody, cliPath, 'status', '--json']);
    const { groups } = JSON.parse(seen.stdout) as { groups: { name: string; details: boolean }[] };
    t.equal(groups.find(({ name }) => name === 'own')?.details, true);
    t.equal(groups.find(({ name }) => name === 'root-owned')?.details, false);
    const other = await stage.run('setpriv', [
      ...asNobody,
      ...[cliPath, 'unprotect', 'root-owned', '--json'],
    ]);
    t.equal(other.status, 77, other.stdout);
  }),
);

t.test('status has the documented keys', { skip }, (t) =>
  onStage(t, 'status', async (stage) => {
    await stage.startDaemon();
    const victim = await startVictim(stage, 'memory_load', '16', '2', '1000');
    const name = 'main';
    await stage.protect(victim.pid, name, '--epoch', '50ms');
    const first = await stage.waitForState(name, ['protected']);
    const group = await waitFor(
      async () => {
        const now = await stage.group(name);
        return now && now.epoch > first.epoch + 3 && now.pauseUs.p50 > 0 && now;
      },
      20_000,
      'no epochs are committed',
    );
    t.match(group, {
      name,
      state: 'protected',
      pid: victim.pid,
      hostPid: victim.pid,
      node: String,
      generation: Number,
      lagMs: Number,
      pauseUs: { last: Number, p50: Number, p99: Number, max: Number },
      memory: { primaryBytes: Number, residentBytes: Number, coldBytes: 0, absentBytes: Number },
      replicas: [{ rank: 1, epoch: Number, node: String }],
      interval: { ms: Number, askedMs: 50, why: String },
    });
    t.ok(group.memory.primaryBytes > 16 << 20, 'it counts the memory');
    const one = await stage.json<GroupStatus>('status', name);
    t.equal(one.name, name, 'one group can be asked for');
    const text = await stage.command('status');
    t.match(text.stdout, /main/);
    const watching = stage.run('timeout', [
      '--signal=INT',
      '4',
      ...[process.execPath, cliPath].concat('status', '--watch', '--json'),
    ]);
    const lines = (await watching).stdout.trim().split('\n');
    t.ok(lines.length >= 2, 'a watch shows it again and again');
    const doctor = await stage.json<{ ok: boolean }>('doctor');
    t.equal(doctor.ok, true);
  }),
);

t.test('promote, detach, unprotect', { skip }, (t) =>
  onStage(t, 'by-hand', async (stage) => {
    await stage.startDaemon();
    const tools = await buildTools();
    const pidfile = stage.path('main.pid');
    const hook = stage.path('hook.out');
    const victim = await startVictim(stage, 'memory_model');
    let group = await stage.protect(
      victim.pid,
      'main',
      ...['--pidfile', pidfile],
      ...['--on-promote', `echo $REPLPAGE_GROUP $REPLPAGE_HOST_PID $REPLPAGE_EXACT >> ${hook}`],
    );
    await victim.waitForRounds(20);
    await stage.json('promote', 'main');
    group = await stage.waitForPromotion('main', group.generation);
    t.not(group.hostPid, victim.pid);
    t.notOk(await isRunning(victim.pid), 'the old process does not run');
    await victim.waitForRounds(20);
    const told = await waitFor(
      () => readFile(hook, 'utf8').catch(() => undefined),
      5000,
      '--on-promote was not run',
    );
    const written = await readFile(pidfile, 'utf8');
    t.equal(written.trim(), String(group.hostPid), '--pidfile has the new pid');
    t.equal(told.split('\n')[0], `main ${group.hostPid} true`);

    await stage.json('detach', 'main');
    const tracer = await stage.run(`${tools}/interrupter`, [String(group.hostPid), '300']);
    t.equal(tracer.status, 0, 'a debugger can attach');
    const { hostPid } = group;
    t.equal((await stage.refusal('promote', 'main')).code, 'ERR_NO_REPLICA');
    t.equal((await stage.refusal('detach', 'main')).code, 'ERR_NO_REPLICA');
    group = await stage.protect(hostPid, 'renamed');
    t.equal(group.state, 'protected', 'it can be protected again');
    t.match(group, { pidfile, onPromote: /echo/ }, 'with the options that it had');
    t.equal(await stage.group('main'), undefined, 'no second group is left on the process');
    const old = await stage.refusal('protect', String(victim.pid));
    t.match(old.advice, new RegExp(`process ${hostPid}`), 'its pid of before leads to it');
    await stage.json('unprotect', 'renamed');
    await victim.waitForRounds(20);
    t.equal(await statusField(hostPid, 'TracerPid'), '0');
    sendSignal(hostPid, 'SIGKILL');
    await waitFor(async () => !(await isRunning(hostPid)), 10_000, 'it does not die');
    const { rounds } = await victim.state();
    await t.rejects(victim.waitForRounds(1, 500));
    t.equal((await victim.state()).rounds, rounds, 'it stays dead');

    const events = (await stage.command('events', '--json')).stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as EventRecord);
    t.ok(events.length > 2, 'what happened is told');
    t.ok(events.every((event) => event.what !== '' && event.why !== ''));
  }),
);

t.test('a process that ends by itself or is asked to ends its group', { skip }, (t) =>
  onStage(t, 'ends', async (stage) => {
    await stage.startDaemon();
    const asked = await startVictim(stage, 'clocks');
    await stage.protect(asked.pid, 'asked');
    sendSignal(asked.pid, 'SIGTERM');
    const ended = await stage.waitForState('asked', ['ended']);
    t.match(ended.reason ?? '', /TERM/);
    await waitFor(() => asked.child.signalCode !== null, 5000, 'its parent sees nothing');
    t.equal(asked.child.signalCode, 'SIGTERM', 'its parent sees how it ended');

    const byItself = stage.spawn('/bin/sh', ['-c', 'while [ ! -e end ]; do sleep 0.05; done']);
    await stage.protect(byItself.pid ?? 0, 'itself');
    const exit = once(byItself, 'exit');
    await stage.run('touch', ['end']);
    t.same(await exit, [0, null], 'its parent sees its exit status');
    await stage.waitForState('itself', ['ended']);

    const kept = await startVictim(stage, 'clocks');
    const group = await stage.protect(kept.pid, 'kept', '--on-exit', 'promote');
    sendSignal(kept.pid, 'SIGTERM');
    await stage.waitForPromotion('kept', group.generation);
    await kept.waitForRounds(20);
    t.pass('with --on-exit promote it goes on');
  }),
);

t.test('outsiders that cannot be told are found out', { skip }, (t) =>
  onStage(t, 'outsiders', async (stage) => {
    await stage.startDaemon();
    const victim = await startVictim(stage, 'clocks');
    const pid = String(victim.pid);
    const refused = await stage.refusal('protect', pid, '--pidfile', stage.path('none', 'a.pid'));
    t.match(refused.message, /--pidfile .* folder does not exist/);
    const pidfile = stage.path('main.pid');
    await stage.protect(victim.pid, 'main', '--pidfile', pidfile);
    await mkdir(pidfile);
    const { generation } = await stage.json<GroupStatus>('promote', 'main');
    t.match(await stage.waitForPromotion('main', generation), {
      warnings: [/--pidfile .* no file that can be replaced/],
    });
    const { hostPid } = await stage.json<GroupStatus>('detach', 'main');
    sendSignal(hostPid, 'SIGKILL');
    t.match(await stage.waitForState('main', ['ended']), { running: false });
  }),
);

t.test('two daemons share nothing', { skip }, (t) =>
  onStage(t, 'two-daemons', async (stage) => {
    await stage.startDaemon();
    const other = stage.path('other');
    const state = stage.path('run', 'state');
    const same = ['daemon', '--runtime-dir', other, '--state-dir', state];
    const { status, stderr } = await stage.command(...same);
    t.equal(status, 1);
    t.match(stderr, /a daemon runs already .*state/);
    t.equal((await stage.command('daemon', '--staging-max', '1MiB')).status, 64);
  }),
);

t.test('crashes are answered a few times, then the group ends', { skip }, (t) =>
  onStage(t, 'retries', async (stage) => {
    await stage.startDaemon();
    const victim = await startVictim(stage, 'memory_model');
    let group = await stage.protect(victim.pid, 'main', '--retries', '2', '--files', 'keep');
    for (const signal of ['SIGSEGV', 'SIGABRT'] as const) {
      await victim.waitForRounds(10);
      sendSignal(group.hostPid, signal);
      group = await stage.waitForPromotion('main', group.generation);
      t.equal(group.promotion?.exact, false, `${signal}: from the last epoch`);
      await victim.waitForRounds(10);
    }
    t.equal(group.retries.left, 0);
    sendSignal(group.hostPid, 'SIGBUS');
    const ended = await stage.waitForState('main', ['ended', 'failed']);
    t.match(ended.reason ?? '', /retries|crash|BUS/i);
  }),
);

t.test('the daemon lets go of all when it ends, and takes them up again', { skip }, (t) =>
  onStage(t, 'restart', async (stage) => {
    await stage.startDaemon();
    const second = await stage.run(process.execPath, [cliPath, 'daemon']);
    t.not(second.status, 0, `a second daemon ends: ${second.stderr.trim().slice(-200)}`);
    const victim = await startVictim(stage, 'signal_count', '500');
    await stage.protect(victim.pid, 'main');
    t.equal(await stage.stopDaemon(), 0, 'it ends cleanly');
    await victim.waitForRounds(50);
    t.equal(await statusField(victim.pid, 'TracerPid'), '0', 'nobody traces it');
    await stage.startDaemon();
    let group = await stage.waitForState('main', ['protected', 'lagging']);
    await victim.waitForRounds(50);
    sendSignal(group.hostPid, 'SIGKILL');
    group = await stage.waitForPromotion('main', group.generation);
    await victim.waitForRounds(50);
    // A promoted process outlives the daemon too, and is found again.
    await stage.stopDaemon();
    await victim.waitForRounds(50);
    await stage.startDaemon();
    group = await stage.waitForState('main', ['protected', 'lagging']);
    await stage.killDaemon();
    await victim.waitForRounds(50);
    await stage.startDaemon();
    group = await stage.waitForState('main', ['protected', 'lagging']);
    sendSignal(group.hostPid, 'SIGKILL');
    await stage.waitForPromotion('main', group.generation);
    await victim.waitForRounds(50);
  }),
);

t.test('the daemon ends at once after a group whose next epoch was far away', { skip }, (t) =>
  onStage(t, 'far-away', async (stage) => {
    await stage.startDaemon();
    const victim = await startVictim(stage, 'signal_count', '500');
    await stage.protect(victim.pid, 'main', '--epoch', '50s');
    await stage.unprotect('main');
    const start = performance.now();
    t.equal(await stage.stopDaemon(), 0);
    t.ok(performance.now() - start < 15_000, 'it does not wait for the epoch');
  }),
);
