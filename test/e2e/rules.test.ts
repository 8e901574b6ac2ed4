/**
 * Rules that hold after `protect` has said yes: what a program takes up later, who owns it, how
 * long it may stand still, and what becomes of a daemon whose disk is full or damaged.
 */
import { once } from 'node:events';
import { chmod, chown, copyFile, mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import t, { type Test } from 'tap';
import { onStage, startVictim } from '../support/on-stage.js';
import { sendSignal, statusField } from '../support/processes.js';
import { cliPath, whyNoEngine } from '../support/repository.js';
import type { Stage } from '../support/stage.js';
import { Victim } from '../support/victim.js';
import { waitFor } from '../support/wait-for.js';

const skip = whyNoEngine() ?? false;
const nobody = 65534;
const asNobody = ['--reuid', '65534', '--regid', '65534', '--clear-groups'];

for (const [kind, words] of [
  ['seccomp', /seccomp filter/],
  ['io_uring', /io_uring|fd \d+/],
  ['user_namespace', /namespace/],
  ['fanotify', /fd \d+/],
  ['device_mapping', /perf ring/],
  ['no_main_thread', /main thread has ended/],
] as const) {
  t.test(`${kind} that is taken up later ends protection by name`, { skip }, (t) =>
    onStage(t, `late-${kind}`, async (stage) => {
      await stage.startDaemon();
      const victim = await startVictim(stage, 'refused', kind, 'later');
      await stage.protect(victim.pid, 'main');
      sendSignal(victim.pid, 'SIGUSR1');
      const group = await stage.waitForState('main', ['unprotected'], 20_000);
      t.match(group.reason, words);
      await victim.waitForRounds(20);
      t.equal(await statusField(victim.pid, 'TracerPid'), '0', 'nobody traces it any more');
      const again = await stage.refusal('protect', String(victim.pid), '--name', 'again');
      t.equal(again.code, 'ERR_REFUSED', 'as protect would have said');
    }),
  );
}

/** Set-user-ID programs work where the file system lets them only. */
async function suidCopy(t: Test, program: string): Promise<string> {
  const folder = await mkdtemp('/var/tmp/replpage-suid-');
  t.teardown(() => rm(folder, { recursive: true, force: true }));
  await chmod(folder, 0o755);
  const copy = path.join(folder, 'program');
  await copyFile(program, copy);
  await chmod(copy, 0o4755);
  return copy;
}

async function nobodysStage(stage: Stage): Promise<void> {
  await stage.startDaemon();
  await chown(stage.path(), nobody, nobody);
  await chown(stage.path('run', 'replpage.sock'), 0, nobody);
}

t.test('a set-user-ID program is not its caller’s to protect', { skip }, (t) =>
  onStage(t, 'suid', async (stage) => {
    await nobodysStage(stage);
    const program = await suidCopy(t, '/bin/sleep');
    const child = stage.spawn('setpriv', [...asNobody, program, '1000']);
    const pid = child.pid ?? 0;
    await waitFor(
      async () => (await statusField(pid, 'Uid'))?.startsWith('65534\t0') ?? false,
      10_000,
      'it did not get root’s rights',
    );
    const args = ['protect', String(pid), '--name', 'stolen', '--json'];
    const { status, stdout } = await stage.run('setpriv', [
      ...[...asNobody, process.execPath, cliPath],
      ...args,
    ]);
    t.equal(status, 77, stdout);
    t.match(stdout, /ERR_DENIED/);
    t.equal(await statusField(pid, 'TracerPid'), '0');
    sendSignal(pid, 'SIGKILL');
  }),
);

for (const attach of ['always', 'epochs']) {
  t.test(`an execve out of the owner’s reach ends protection: attach ${attach}`, { skip }, (t) =>
    onStage(t, `reach-${attach}`, async (stage) => {
      await nobodysStage(stage);
      const program = await suidCopy(t, '/bin/sleep');
      const go = stage.path('go');
      const script = `while [ ! -e ${go} ]; do sleep 0.05; done; exec ${program} 1000`;
      const child = stage.spawn('setpriv', [...asNobody, '/bin/sh', '-c', script]);
      const pid = child.pid ?? 0;
      await waitFor(
        async () => (await statusField(pid, 'Uid'))?.startsWith('65534\t65534') ?? false,
        10_000,
        'it did not become another user’s',
      );
      const args = ['protect', String(pid), '--name', 'main', '--attach', attach, '--json'];
      const { status, stdout } = await stage.run('setpriv', [
        ...[...asNobody, process.execPath, cliPath],
        ...args,
      ]);
      t.equal(status, 0, stdout);
      await writeFile(go, '');
      const group = await stage.waitForState('main', ['unprotected'], 20_000);
      t.match(group.reason, /may not trace/);
      t.equal(await statusField(pid, 'TracerPid'), '0', 'nobody traces it any more');
      t.match(await statusField(pid, 'Uid'), /^65534\t0/, 'it runs with root’s rights');
      sendSignal(pid, 'SIGKILL');
    }),
  );
}

t.test('a long first copy can be interrupted', { skip }, (t) =>
  onStage(t, 'interrupt', async (stage) => {
    await stage.startDaemon();
    const victim = await startVictim(stage, 'memory_load', '1500', '2', '100');
    const child = stage.spawn(process.execPath, [cliPath, 'protect', String(victim.pid)]);
    await waitFor(
      async () => (await stage.status())?.groups[0]?.state === 'protecting',
      20_000,
      'it is not being protected',
    );
    await waitFor(
      async () => (await statusField(victim.pid, 'TracerPid')) !== '0',
      20_000,
      'nobody traces it',
    );
    const began = performance.now();
    const ended = once(child, 'exit');
    child.kill('SIGINT');
    await waitFor(
      async () => (await statusField(victim.pid, 'TracerPid')) === '0',
      20_000,
      'it is still traced',
    );
    const tookMs = performance.now() - began;
    t.ok(tookMs < 2000, `let go after ${Math.round(tookMs)} ms`);
    t.same(await ended, [130, null]);
    await victim.waitForRounds(20);
    t.same((await stage.status())?.groups, [], 'no group is left');
  }),
);

t.test('a pause is never longer than asked for, and what does not fit shows', { skip }, (t) =>
  onStage(t, 'max-pause', async (stage) => {
    await stage.startDaemon();
    const victim = await startVictim(stage, 'memory_load', '256', '2', '100');
    await stage.protect(victim.pid, 'main', '--max-pause', '200ms');
    const group = await stage.waitForState('main', ['protected', 'lagging']);
    t.ok(group.memory.primaryBytes > 256 * 2 ** 20, `primary ${group.memory.primaryBytes}`);
    sendSignal(victim.pid, 'SIGKILL');
    await stage.waitForPromotion('main', group.generation);
    await victim.waitForRounds(20);
  }),
);

t.test('what is rewritten faster than it is copied is slowed down for that', { skip }, (t) =>
  onStage(t, 'rewritten', async (stage) => {
    await stage.startDaemon();
    const victim = await startVictim(stage, 'memory_load', '400', '2', '100000000');
    const pause = ['--max-pause', '5ms'];
    const args = ['protect', String(victim.pid), '--name', 'main', ...pause, '--json'];
    const { status, stdout } = await stage.command(...args);
    if (status !== 0) {
      // Beside other work even that may not be enough.
      t.match(stdout, /writes faster than its memory is copied.*try --max-pause \d+ms/);
      await victim.waitForRounds(3);
      t.equal(await statusField(victim.pid, 'TracerPid'), '0', 'it is left alone');
      return;
    }
    await victim.waitForRounds(3);
    const { generation } = await stage.waitForState('main', ['protected', 'lagging']);
    sendSignal(victim.pid, 'SIGKILL');
    const promoted = await stage.waitForPromotion('main', generation);
    t.equal(promoted.promotion?.exact, true, 'nothing is lost');
    await victim.waitForRounds(3);
  }),
);

t.test('a damaged list of groups is put aside, and the daemon runs', { skip }, (t) =>
  onStage(t, 'damaged', async (stage) => {
    await stage.startDaemon();
    const victim = await startVictim(stage, 'clocks');
    await stage.protect(victim.pid, 'main');
    await stage.killDaemon();
    const state = stage.path('run', 'state');
    await writeFile(path.join(state, 'groups.json'), 'garbage');
    await stage.startDaemon();
    const status = await stage.status();
    t.match(status?.daemon.warnings, [/groups\.json.*put aside as/]);
    t.ok((await readdir(state)).some((name) => name.includes('unread')));
    const shown = await stage.command('status');
    t.match(shown.stdout, /warning: .*put aside/);
    await stage.protect(victim.pid, 'main');
    await stage.killDaemon();
    await stage.startDaemon();
    await stage.waitForState('main', ['protected', 'lagging']);
    t.same((await stage.status())?.daemon.warnings, [], 'the new list is whole');
  }),
);

t.test('a crash that ends the main thread first is answered like any other', { skip }, (t) =>
  onStage(t, 'beside', async (stage) => {
    await stage.startDaemon();
    const victim = await Victim.start(stage, 'crash_beside', []);
    if (typeof victim === 'string') return t.comment(victim);
    await stage.protect(victim.pid, 'main', '--files', 'keep', '--epoch', '1s');
    for (let crash = 1; crash <= 2; crash++) {
      await victim.waitForRounds(20);
      // An epoch that holds the signal already would crash again.
      const { hostPid, generation } = await stage.waitForState('main', ['protected']);
      sendSignal(hostPid, 'SIGUSR1');
      const group = await stage.waitForPromotion('main', generation);
      t.equal(group.promotion?.exact, false, `crash ${crash}: it goes on from an epoch`);
      await victim.waitForRounds(20);
    }
  }),
);

/** A small file system of its own below the stage; undefined where none may be mounted. */
async function smallDisk(t: Test, stage: Stage, name: string): Promise<string | undefined> {
  const folder = stage.path(name);
  await mkdir(folder, { recursive: true });
  const args = ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', folder];
  const mounted = await stage.run('mount', args);
  if (mounted.status !== 0) {
    t.comment(mounted.stderr);
    return undefined;
  }
  return folder;
}

t.test('a full disk costs records and logs, never the daemon or the primary', { skip }, (t) =>
  onStage(t, 'full-disk', async (stage) => {
    const disk = await smallDisk(t, stage, 'disk');
    if (disk === undefined) return;
    try {
      const filler = path.join(disk, 'filler');
      await mkdir(path.join(disk, 'state'));
      await writeFile(filler, Buffer.alloc(64 * 1024, 1)).catch(() => undefined);
      await stage.startDaemon('--state-dir', path.join(disk, 'state'));
      const victim = await startVictim(stage, 'memory_load', '8', '2', '200');
      const report = await stage.json<{ warnings: string[] }>(
        ...['protect', String(victim.pid), '--name', 'main'],
      );
      t.match(report.warnings.join(' '), /could not be recorded .*ENOSPC/);
      await stage.waitForState('main', ['protected', 'lagging']);
      await victim.waitForRounds(20);
      await rm(filler);
      await waitFor(
        async () => (await stage.status())?.daemon.warnings.length === 0,
        15_000,
        'it is not recorded when there is room again',
      );
      await stage.killDaemon();
      await stage.startDaemon('--state-dir', path.join(disk, 'state'));
      const group = await stage.waitForState('main', ['protected', 'lagging']);
      sendSignal(victim.pid, 'SIGKILL');
      await stage.waitForPromotion('main', group.generation);
      await victim.waitForRounds(20);
      await stage.stopDaemon();
    } finally {
      await stage.killDaemon();
      await stage.run('umount', ['-l', disk]);
    }
  }),
);
