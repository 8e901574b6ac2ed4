/** Memory that runs out, on either side: each side gets a memory control group with a limit. */
import { access, mkdir, readFile, rmdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import t from 'tap';
import { keepersOf, statusField } from '../support/processes.js';
import { onStage, startVictim } from '../support/on-stage.js';
import { whyNoEngine } from '../support/repository.js';
import type { Stage } from '../support/stage.js';
import type { Victim } from '../support/victim.js';
import { waitFor } from '../support/wait-for.js';

/** Version 1 of control groups, as this is where both a group and its limit can be had by anyone. */
const hierarchy = '/sys/fs/cgroup/memory';
const noGroups = await access(path.join(hierarchy, 'memory.limit_in_bytes')).then(
  () => false,
  () => `no memory control groups in ${hierarchy}`,
);
const skip = whyNoEngine() ?? noGroups;
const growthMiB = 64;

/** Grows from SIGUSR1 on: its memory must not be there before the limit is. */
const startGrowing = (stage: Stage): Promise<Victim> =>
  startVictim(stage, 'memory_growth', String(growthMiB), 'hold');

const grown = (victim: Victim): Promise<unknown> =>
  victim.waitUntil(
    ({ counters }) => counters[0] === growthMiB * 256,
    60_000,
    ({ counters }) => `it stopped growing at page ${counters[0]}`,
  );

async function memoryGroupOf(pid: number): Promise<string> {
  const groups = await readFile(`/proc/${pid}/cgroup`, 'utf8');
  const own = /^\d+:memory:(.*)$/m.exec(groups)?.[1] ?? '/';
  return path.join(hierarchy, own);
}

async function limit(group: string, bytes: number): Promise<void> {
  await writeFile(path.join(group, 'memory.limit_in_bytes'), String(bytes));
}

// What grows meanwhile may be above a limit that was just worked out: EBUSY then, so once more.
async function limitToHeadroom(group: string, bytes: number): Promise<void> {
  const limited = async (): Promise<boolean> => {
    const used = Number(await readFile(path.join(group, 'memory.usage_in_bytes'), 'utf8'));
    return limit(group, used + bytes).then(
      () => true,
      () => false,
    );
  };
  await waitFor(limited, 10_000, `no limit can be set on ${group}`);
}

t.test('a primary killed by the OOM killer runs on, with nothing lost', { skip }, (t) =>
  onStage(t, 'oom-primary', async (stage) => {
    await stage.startDaemon();
    const victim = await startGrowing(stage);
    const protectedGroup = await stage.protect(victim.pid, 'main');
    const home = await memoryGroupOf(victim.pid);
    const group = path.join(hierarchy, `replpage-test-${process.pid}`);
    await mkdir(group);
    try {
      await limit(group, 8 << 20);
      await writeFile(path.join(group, 'cgroup.procs'), String(victim.pid));
      process.kill(victim.pid, 'SIGUSR1');
      const promoted = await stage.waitForPromotion('main', protectedGroup.generation);
      t.equal(promoted.promotion?.exact, true, 'the last epoch is exact');
      await grown(victim);
      t.pass('all its memory is right, beyond the limit of the old one');
      t.not(await memoryGroupOf(promoted.hostPid), group, 'it left the control group');
    } finally {
      await waitFor(
        () =>
          rmdir(group).then(
            () => true,
            () => false,
          ),
        20_000,
        `${group} stays in use (it was in ${home})`,
      );
    }
  }),
);

t.test('a replica that runs out of memory leaves the primary unharmed', { skip }, (t) =>
  onStage(t, 'oom-replica', async (stage) => {
    await stage.startDaemon();
    const victim = await startGrowing(stage);
    await stage.protect(victim.pid, 'main');
    const [holder = 0] = await keepersOf(stage.path('run', 'log', 'main.log'));
    const group = await memoryGroupOf(holder);
    t.match(group, /replpage/, 'the replica has a control group of its own');
    await limitToHeadroom(group, 4 << 20);
    process.kill(victim.pid, 'SIGUSR1');
    const left = await stage.waitForState('main', ['unprotected'], 30_000);
    t.ok(left.reason, `it says why: ${left.reason}`);
    await grown(victim);
    t.equal(victim.child.exitCode ?? victim.child.signalCode, null, 'the primary runs on');
    t.equal(await statusField(victim.pid, 'TracerPid'), '0', 'nobody traces it any more');
    const again = await stage.protect(victim.pid, 'main');
    t.equal(again.state, 'protected', 'it can be protected again');
  }),
);
