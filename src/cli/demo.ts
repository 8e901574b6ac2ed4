/**
 * `replpage demo`: a real redis-server is protected through the real commands, killed with SIGKILL
 * while clients write, and what they were promised is compared with what is there.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import type { Command } from 'commander';
import { checkProtectRequest, type GroupStatus } from '../api/schema.js';
import { systemClock } from '../base/clock.js';
import { ReplicationError } from '../base/errors.js';
import {
  formatBytes,
  formatMs,
  formatUs,
  parseBytes,
  parseOption,
  parseWhole,
} from '../base/units.js';
import { exitCodes, interruptSignal, print, printJson, say } from './context.js';
import { RedisConnection } from './demo/resp.js';
import { Stage, type Fill } from './demo/stage.js';
import { Writer, type WriterReport } from './demo/writer.js';

interface DemoFlags {
  readonly size: string;
  readonly clients: string;
  readonly kills: string;
  readonly ram?: string;
  readonly json?: boolean;
}

interface KillReport {
  readonly promotion: GroupStatus['promotion'];
  /** Longest time that a client waited for an answer. */
  readonly longestGapMs: number;
  readonly protectedAgainMs: number;
}

interface DemoReport {
  readonly ok: boolean;
  readonly redis: Fill;
  readonly clients: readonly WriterReport[];
  readonly acknowledged: number;
  readonly connectionsLost: number;
  /** Before the first kill, with --ram. */
  readonly saved?: GroupStatus['memory'] | undefined;
  readonly kills: readonly KillReport[];
  readonly problems: readonly string[];
}

const group = 'demo-redis';
const calmMs = 1500;
const patienceMs = 120_000;
const samples = 20_000;
/** Soon, so that nobody has to watch it for a minute. */
const coldAfter = '5s';
const settledMs = 12_000;

export function addDemo(program: Command, setStatus: (code: number) => void): void {
  program
    .command('demo')
    .description('protect a real redis-server, kill it while clients write, show what was lost')
    .option('--size <bytes>', 'how full redis is', '1GiB')
    .option('--clients <n>', 'connections that write', '4')
    .option('--kills <n>', 'how often it is killed, each time after it is protected again', '1')
    .option(
      '--ram <what>',
      'what the replica holds in RAM: all (default), hot, or a share such as 30%; ' +
        'the rest goes to a page store, and the kill waits for it',
    )
    .option('--json', 'print one JSON object on stdout instead of text')
    .action(async (flags: DemoFlags) => {
      if (process.getuid?.() !== 0) {
        throw new ReplicationError('ERR_DENIED', 'the demo needs root: it runs a daemon', {
          advice: 'sudo replpage demo (or: sudo npm run quickstart)',
        });
      }
      const signal = interruptSignal();
      const tell = flags.json ? say : print;
      const report = await run(flags, tell, signal);
      if (report === undefined) {
        throw new ReplicationError(
          'ERR_INTERRUPTED',
          'interrupted; everything that the demo started has been ended',
        );
      }
      if (flags.json) printJson(report);
      if (!report.ok) setStatus(exitCodes.failure);
    });
}

type Tell = (text: string) => void;

async function run(
  flags: DemoFlags,
  tell: Tell,
  signal: AbortSignal,
): Promise<DemoReport | undefined> {
  const bytes = parseOption('--size', flags.size, parseBytes);
  const clients = parseOption('--clients', flags.clients, parseWhole);
  const kills = parseOption('--kills', flags.kills, parseWhole);
  if (!(clients >= 1 && clients <= 64 && kills >= 1)) {
    throw new ReplicationError('ERR_USAGE', '--clients is 1 to 64, --kills at least 1');
  }
  checkProtectRequest({ pid: 1, ram: flags.ram }, (field) => `--${field}`);
  await using stage = await Stage.make();
  const pid = await stage.startRedis();
  tell(`redis-server runs as process ${pid} on port ${stage.port}; filling it`);
  const control = await RedisConnection.connect(stage.port);
  const fill = await stage.fill(control, bytes, signal);
  if (signal.aborted) return undefined;
  tell(`it holds ${fill.keys} keys, ${formatBytes(fill.bytes)}`);
  await protect(stage, pid, flags.ram, tell);
  const saved = flags.ram === undefined ? undefined : await waitForSaving(stage, signal, tell);
  if (signal.aborted) return undefined;
  const writers = await startWriters(stage.port, clients);
  tell(`${clients} clients write numbered entries, 16 at a time each`);
  const reports: KillReport[] = [];
  for (let i = 0; i < kills && !signal.aborted; i++) {
    await systemClock.sleep(calmMs, signal);
    if (signal.aborted) break;
    reports.push(await killOnce(stage, writers, tell, signal));
    if (writers.some((writer) => writer.lost)) break;
  }
  await systemClock.sleep(calmMs, signal);
  if (signal.aborted) return undefined;
  const report = { ...(await judge({ stage, fill, control, writers, reports })), saved };
  conclude(report, tell);
  control.close();
  return report;
}

/** As a user would: the command itself, in a process of its own. */
async function protect(
  stage: Stage,
  pid: number,
  ram: string | undefined,
  tell: Tell,
): Promise<void> {
  const paging = ram === undefined ? [] : ['--ram', ram, '--cold-after', coldAfter];
  const typed = ['protect', String(pid), '--name', group, ...paging];
  const args = [...typed, '--runtime-dir', stage.runtimeDir];
  tell(`$ replpage ${typed.join(' ')}`);
  const child = spawn(process.execPath, [process.argv[1] ?? '', ...args], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  child.stdout.on('data', (chunk: Buffer) => tell(chunk.toString('utf8').trimEnd()));
  const [status] = (await once(child, 'close')) as [number | null];
  if (status !== 0) {
    throw new ReplicationError('ERR_STATE', `replpage protect ended with status ${status}`, {
      advice: 'replpage doctor shows what this machine lacks',
    });
  }
}

/** Until the replica's RAM has not shrunk for a while. */
async function waitForSaving(
  stage: Stage,
  signal: AbortSignal,
  tell: Tell,
): Promise<GroupStatus['memory']> {
  tell('what redis does not touch leaves the RAM of the replica ...');
  let { memory } = await stage.client.group(group);
  let shrunkMs = systemClock.nowMs();
  const deadline = shrunkMs + patienceMs;
  while (!signal.aborted && systemClock.nowMs() < deadline) {
    await systemClock.sleep(calmMs, signal);
    const now = (await stage.client.group(group)).memory;
    if (now.coldBytes > memory.coldBytes) shrunkMs = systemClock.nowMs();
    memory = now;
    if (memory.coldBytes > 0 && systemClock.nowMs() - shrunkMs > settledMs) break;
  }
  if (signal.aborted) return memory;
  const { primaryBytes, residentBytes, coldBytes } = memory;
  tell(
    `it holds ${formatBytes(residentBytes)} of ${formatBytes(primaryBytes)} in RAM ` +
      `(${Math.round((100 * residentBytes) / primaryBytes)}%), ` +
      `${formatBytes(coldBytes)} are in the page store`,
  );
  return memory;
}

async function startWriters(port: number, clients: number): Promise<readonly Writer[]> {
  const writers: Writer[] = [];
  for (let i = 0; i < clients; i++) {
    writers.push(new Writer(await RedisConnection.connect(port), `log:${i}`));
  }
  writers.forEach((writer) => writer.start());
  return writers;
}

async function killOnce(
  stage: Stage,
  writers: readonly Writer[],
  tell: Tell,
  signal: AbortSignal,
): Promise<KillReport> {
  const before = await stage.client.group(group);
  writers.forEach((writer) => writer.restartGap());
  const written = writers.map((writer) => writer.acknowledged);
  tell(`$ kill -9 ${before.hostPid}    (epoch ${before.epoch}, ${sum(written)} writes so far)`);
  const killedMs = systemClock.nowMs();
  process.kill(before.hostPid, 'SIGKILL');
  const { promotion, hostPid } = await until(stage, signal, (now) =>
    now.promotion === null || now.hostPid === before.hostPid ? undefined : now,
  );
  const allAnswered = (): boolean =>
    writers.every((writer, i) => writer.lost || writer.acknowledged > (written[i] ?? 0) + 100);
  while (!allAnswered() && systemClock.nowMs() - killedMs < patienceMs && !signal.aborted) {
    await systemClock.sleep(1);
  }
  await systemClock.sleep(calmMs, signal);
  const longestGapMs = Math.max(...writers.map((writer) => writer.report().longestGapMs));
  tell(
    `it runs on as process ${hostPid}: first instruction ` +
      `${formatUs(promotion?.deathToRunUs ?? 0)} after the death, ` +
      `longest wait of a client ${formatMs(longestGapMs)}`,
  );
  const again = await until(stage, signal, (now) => (now.state === 'protected' ? now : undefined));
  const protectedAgainMs = systemClock.nowMs() - killedMs;
  tell(`protected again ${formatMs(protectedAgainMs)} later, generation ${again.generation}`);
  return { promotion, longestGapMs, protectedAgainMs };
}

/** Looks at the group until `found` finds something; throws when the group is over. */
async function until(
  stage: Stage,
  signal: AbortSignal,
  found: (now: GroupStatus) => GroupStatus | undefined,
): Promise<GroupStatus> {
  const deadline = systemClock.nowMs() + patienceMs;
  for (;;) {
    const now = await stage.client.group(group);
    const result = found(now);
    if (result !== undefined || signal.aborted) return now;
    const over = ['ended', 'unprotected', 'failed'].includes(now.state);
    if (over || systemClock.nowMs() > deadline) {
      throw new ReplicationError('ERR_STATE', `the group is ${now.state}: ${now.reason ?? ''}`);
    }
    await systemClock.sleep(5);
  }
}

interface Outcome {
  readonly stage: Stage;
  readonly fill: Fill;
  readonly control: RedisConnection;
  readonly writers: readonly Writer[];
  readonly reports: readonly KillReport[];
}

async function judge({ stage, fill, control, writers, reports }: Outcome): Promise<DemoReport> {
  await Promise.all(writers.map((writer) => writer.stop()));
  const problems: string[] = [];
  for (const writer of writers) {
    problems.push(...writer.report().errors, ...(await writer.verify(control)));
  }
  problems.push(...(await stage.verifyFill(control, fill, samples)));
  return {
    ok: problems.length === 0,
    redis: fill,
    clients: writers.map((writer) => writer.report()),
    acknowledged: sum(writers.map((writer) => writer.acknowledged)),
    connectionsLost: writers.filter((writer) => writer.lost).length,
    kills: reports,
    problems,
  };
}

const sum = (numbers: readonly number[]): number => numbers.reduce((a, b) => a + b, 0);

function conclude(report: DemoReport, tell: Tell): void {
  const { acknowledged, clients, connectionsLost, problems } = report;
  tell(`${acknowledged} writes were acknowledged; each is there, once, in order: ${report.ok}`);
  tell(`${clients.length} connections, ${connectionsLost} lost`);
  for (const problem of problems.slice(0, 20)) tell(`  ${problem}`);
  tell(report.ok ? 'nothing was lost' : 'SOMETHING WAS LOST');
}
