/**
 * What does not fit into the staging memory goes to a spill file, on a disk that may be full or
 * read-only. The primary notices nothing, memory stays bounded, and status says what is wrong.
 */
import { mkdir } from 'node:fs/promises';
import path from 'node:path';
import t, { type Test } from 'tap';
import { sendSignal, statusField } from '../support/processes.js';
import { onStage, startVictim } from '../support/on-stage.js';
import { whyNoEngine } from '../support/repository.js';
import type { Stage } from '../support/stage.js';
import { letRun, waitFor } from '../support/wait-for.js';

const skip = whyNoEngine() ?? false;
const mebibyte = 1024 * 1024;
const stagingBytes = 32 * mebibyte;
/** Beyond the staging memory: Node.js and what the daemon knows. */
const daemonBytesMax = 150 * mebibyte;

/** A folder with a file system of its own. */
async function mounted(
  stage: Stage,
  args: readonly string[],
  body: (folder: string) => Promise<void>,
): Promise<void> {
  const folder = stage.path('state');
  await mkdir(folder);
  const mount = await stage.run('mount', [...args, folder]);
  if (mount.status !== 0) throw new Error(`mount: ${mount.stderr}`);
  try {
    await body(folder);
  } finally {
    await stage.unprotect('main').catch(() => undefined);
    await stage.stopDaemon();
    await stage.run('umount', ['--recursive', '--lazy', folder]);
  }
}

/** Staged pages count as shared memory, with the pages of node's own files they are all. */
async function daemonBytes(stage: Stage): Promise<number> {
  const kibibytes = async (field: string): Promise<number> =>
    Number((await statusField(stage.daemonPid, field))?.split(' ')[0] ?? 0);
  return ((await kibibytes('RssAnon')) + (await kibibytes('RssShmem'))) * 1024;
}

/** An epoch that is under way gives back what it holds: that is taken, too. */
async function fill(stage: Stage, folder: string): Promise<void> {
  const file = path.join(folder, 'filler');
  for (let i = 0; i < 10; i++) {
    await stage.run('sh', ['-c', `cat /dev/zero >>${file}`]);
    await letRun(300);
  }
}

async function startsWith(stage: Stage, state: string): Promise<void> {
  await stage.startDaemon('--state-dir', state, '--staging-max', '32MiB', '--spill-max', '1GiB');
}

async function diesAndLives(t: Test, stage: Stage, hostPid: number): Promise<void> {
  const { generation } = (await stage.group('main')) ?? { generation: 0 };
  t.ok(sendSignal(hostPid, 'SIGKILL'));
  const promoted = await waitFor(
    async () => {
      const group = await stage.group('main');
      return group !== undefined && group.hostPid !== hostPid && group;
    },
    30_000,
    'it is not promoted',
  );
  t.equal(promoted.promotion?.exact, true, 'a kill loses nothing all the same');
  t.ok(promoted.generation >= generation);
}

t.test('the disk for spilling is full', { skip, timeout: 120_000 }, (t) =>
  onStage(t, 'spill-full', (stage) =>
    mounted(stage, ['-t', 'tmpfs', '-o', 'size=300m', 'none'], async (folder) => {
      await startsWith(stage, folder);
      // Some 50 MiB between two epochs.
      const victim = await startVictim(stage, 'memory_load', '60', '2', '8000');
      await stage.protect(victim.pid, 'main', '--max-pause', '500ms', '--epoch', '3s');
      await fill(stage, folder);
      const group = await stage.waitForState('main', ['lagging'], 60_000);
      t.match(group.reason, /No space left/, 'status says why it lags');
      let largest = 0;
      for (let i = 0; i < 20; i++) {
        await victim.waitForRounds(20);
        largest = Math.max(largest, await daemonBytes(stage));
      }
      t.ok(
        largest < stagingBytes + daemonBytesMax,
        `${Math.round(largest / mebibyte)} MiB: abandoned epochs do not pile up`,
      );
      await diesAndLives(t, stage, victim.pid);
      await victim.waitForRounds(50);
    }),
  ),
);

t.test('the disk for spilling is read-only', { skip, timeout: 120_000 }, (t) =>
  onStage(t, 'spill-read-only', (stage) =>
    mounted(stage, ['-t', 'tmpfs', '-o', 'size=4m', 'none'], async (folder) => {
      await startsWith(stage, folder);
      const spill = path.join(folder, 'spill');
      for (const options of ['bind', 'remount,bind,ro']) {
        const bound = await stage.run('mount', ['-o', options, spill, spill]);
        t.equal(bound.status, 0, bound.stderr);
      }
      const victim = await startVictim(stage, 'memory_load', '8', '2', '2000');
      const group = await stage.protect(victim.pid, 'main');
      t.match(group.warnings.join(), /spill.*Read-only/i, 'protect says that there is none');
      await victim.waitForRounds(50);
      const { epochs } = await stage.waitForState('main', ['protected']);
      t.ok(epochs.committed > 0, 'what fits into memory needs none');
      await diesAndLives(t, stage, victim.pid);
      await victim.waitForRounds(50);
    }),
  ),
);
