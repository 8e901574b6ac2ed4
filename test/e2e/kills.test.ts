/**
 * More than one SIGKILL: who kills does not stop when the first one seems to have no effect, a
 * service manager kills all of a control group at once, again and again. Nothing may be lost by it.
 *
 * REPLPAGE_TEST_KILLS sets how often each victim is killed in each way (3).
 */
import { existsSync } from 'node:fs';
import { mkdir, readdir, readFile, rmdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import t, { type Test } from 'tap';
import { descendantsOf, isRunning, sendSignal } from '../support/processes.js';
import { onStage, startVictim } from '../support/on-stage.js';
import { whyNoEngine } from '../support/repository.js';
import type { Stage } from '../support/stage.js';
import { letRun, waitFor } from '../support/wait-for.js';

const skip = whyNoEngine() ?? false;
const kills = Number(process.env['REPLPAGE_TEST_KILLS'] ?? 3);

/** Kills the process with that pid in some way; resolves when it has done all that it does. */
type Kill = (pid: number, stage: Stage) => Promise<void>;

const twice: Kill = (pid) => {
  sendSignal(pid, 'SIGKILL');
  sendSignal(pid, 'SIGKILL');
  return Promise.resolve();
};

const untilItIsGone: Kill = async (pid) => {
  for (let i = 0; i < 2000 && (await isRunning(pid)); i++) sendSignal(pid, 'SIGKILL');
};

const byEveryThread: Kill = async (pid) => {
  const tids = (await readdir(`/proc/${pid}/task`)).map(Number);
  for (const tid of tids) sendSignal(tid, 'SIGKILL');
};

/** The root first: a child that is killed before it dies alone, as its parent expects. */
const withItsChildren: Kill = async (pid) => {
  const children = await descendantsOf(pid);
  for (const each of [pid, ...children, pid, ...children]) sendSignal(each, 'SIGKILL');
};

/** Where control groups of version 2 are mounted, and can kill (cgroups of Linux 5.14). */
async function killingCgroups(): Promise<string | undefined> {
  const mounts = (await readFile('/proc/self/mountinfo', 'utf8')).split('\n');
  const root = mounts.find((line) => line.includes(' - cgroup2 '))?.split(' ')[4];
  if (root === undefined) return undefined;
  const folder = path.join(root, `replpage-test-${process.pid}`);
  try {
    await mkdir(folder);
    const kills = existsSync(path.join(folder, 'cgroup.kill'));
    await rmdir(folder);
    return kills ? root : undefined;
  } catch {
    return undefined;
  }
}

const byItsCgroup =
  (root: string): Kill =>
  async (pid) => {
    const folder = path.join(root, `replpage-test-${process.pid}-${pid}`);
    await mkdir(folder);
    for (const each of [pid, ...(await descendantsOf(pid))]) {
      await writeFile(path.join(folder, 'cgroup.procs'), String(each)).catch(() => undefined);
    }
    for (let i = 0; i < 3; i++) await writeFile(path.join(folder, 'cgroup.kill'), '1');
    await waitFor(
      () =>
        rmdir(folder).then(
          () => true,
          () => false,
        ),
      20_000,
      'the control group of the killed process is still in use',
    );
  };

const victims: readonly (readonly [program: string, ...args: string[]])[] = [
  ['blocked_calls'],
  ['family'],
  ['pending_signals'],
  ['memory_load', '16', '2', '2000'],
];

async function survives(t: Test, stage: Stage, kill: Kill): Promise<void> {
  await stage.startDaemon();
  for (const [program, ...args] of victims) {
    const victim = await startVictim(stage, program, ...args);
    const name = program.replaceAll('_', '-');
    let group = await stage.protect(victim.pid, name);
    for (let round = 1; round <= kills; round++) {
      await victim.waitForRounds(3);
      const killed = group.hostPid;
      await kill(killed, stage);
      group = await stage.waitForPromotion(name, group.generation);
      t.equal(group.promotion?.exact, true, `${name}, ${round}: nothing is lost`);
      await victim.waitForRounds(3);
      t.notOk(await isRunning(killed), `${name}, ${round}: the old one is gone`);
      await letRun(50);
    }
    await stage.unprotect(name);
    t.same(await victim.end(), [], `${name} can be ended`);
  }
}

const ways: readonly (readonly [title: string, kill: Kill])[] = [
  ['twice at once', twice],
  ['again and again until it is gone', untilItIsGone],
  ['by the number of every thread', byEveryThread],
  ['with its children, twice', withItsChildren],
];

for (const [title, kill] of ways) {
  t.test(`killed ${title}`, { skip, timeout: 600_000 }, (t) =>
    onStage(t, 'kills', (stage) => survives(t, stage, kill)),
  );
}

t.test('killed by cgroup.kill', { skip, timeout: 600_000 }, async (t) => {
  const root = await killingCgroups();
  if (root === undefined) return t.comment('no control groups of version 2 that can kill');
  await onStage(t, 'kills', (stage) => survives(t, stage, byItsCgroup(root)));
});
