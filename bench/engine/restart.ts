/** From SIGKILL to the next answer on the same connection, redis under load. */
import { sendSignal } from '../../test/support/processes.js';
import type { GroupStatus } from '../../src/api/schema.js';
import type { Stage } from '../../test/support/stage.js';
import { letRun, waitFor } from '../../test/support/wait-for.js';
import { quantile, type Figures } from '../figures.js';
import type { DaemonMemory } from './daemon-memory.js';
import { Probe } from './probe.js';
import { endChild, startFilledRedis, startLoad, type Load } from './redis-load.js';
import type { Sizes } from './sizes.js';

const answerMs = 30_000;
/** The longest interval that there is, and the epoch itself. */
const epochMs = 90_000;
const atMostMs = 2000;

function withLimit<T>(promise: Promise<T>, message: string): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(message)), answerMs);
    promise.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}

async function nextEpoch(stage: Stage, { epoch }: GroupStatus, what: string): Promise<GroupStatus> {
  return waitFor(
    async () => {
      const now = await stage.group('redis');
      return now && now.epoch > epoch && now;
    },
    epochMs,
    async () => {
      const now = await stage.group('redis');
      return `${what}: no epoch is committed: ${JSON.stringify([now?.state, now?.interval, now?.lastEpoch])}`;
    },
  );
}

export async function measureRestart(
  stage: Stage,
  sizes: Sizes,
  figures: Figures,
  memory: DaemonMemory,
  load: Load,
): Promise<void> {
  const name = `restart, ${load}`;
  await stage.startDaemon();
  memory.watch(stage.daemonPid);
  const server = await startFilledRedis(stage, sizes);
  const benchmark = startLoad(stage, server, load, sizes);
  const probe = await Probe.connect(server.port);
  await waitFor(() => probe.answered > 100, 10_000, 'redis does not answer');
  let group = await stage.protect(server.pid, 'redis');
  const waits: number[] = [];
  const decisions: number[] = [];
  const epochs: number[] = [];
  for (let kill = 1; kill <= sizes.kills; kill++) {
    group = await nextEpoch(stage, group, `kill ${kill}`);
    // Somewhere between two epochs, of which one may be far away.
    await letRun(Math.random() * atMostMs);
    epochs.push(group.interval.ms);
    const next = probe.nextAnswer();
    const start = performance.now();
    sendSignal(group.hostPid, 'SIGKILL');
    const at = await withLimit(next, `kill ${kill}: no answer (${probe.failure ?? 'no error'})`);
    waits.push(at - start);
    group = await stage.waitForPromotion('redis', group.generation);
    decisions.push(group.promotion?.decisionToRunUs ?? Number.NaN);
    if (probe.failure !== undefined) throw new Error(`kill ${kill}: ${probe.failure}`);
    if (benchmark.exitCode !== null) throw new Error(`kill ${kill}: redis-benchmark has an error`);
  }
  probe.close();
  await endChild(benchmark);
  figures.distribution(`${name}: SIGKILL to next answer`, 'ms', waits);
  figures.distribution(`${name}: decision to first instruction`, 'us', decisions);
  figures.distribution(`${name}: epoch interval`, 'ms', epochs);
  figures.atMost(`${name}: SIGKILL to next answer, p50`, quantile(waits, 0.5), 'ms', 20);
  figures.atMost(`${name}: SIGKILL to next answer, p99`, quantile(waits, 0.99), 'ms', 100);
}
