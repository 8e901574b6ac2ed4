// Runs every victim that needs no protection to be judged: alone, then while it is stopped and
// continued by signals, then while a tracer interrupts it. None may find an error.
//   node test/victims/check.mjs [--ms 2000] [name ...]
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { parseArgs, promisify } from 'node:util';
import { buildVictims } from './build.mjs';

const run = promisify(execFile);
const { values, positionals } = parseArgs({
  options: { ms: { type: 'string', default: '2000' } },
  allowPositionals: true,
});
const durationMs = Number(values.ms);
const here = import.meta.dirname;
const programs = await buildVictims(here);
const tools = await buildVictims(path.join(here, '..', 'support', 'tools'));
const list = JSON.parse(await readFile(path.join(here, 'victims.json'), 'utf8'));
const directory = await mkdtemp('/dev/shm/replpage-check-');

async function status(file) {
  const page = await readFile(file);
  const text = page.subarray(576, 2624);
  return {
    rounds: page.readBigUInt64LE(0),
    errors: page.readBigUInt64LE(8),
    ready: page.readBigUInt64LE(16) !== 0n,
    text: text.subarray(0, text.indexOf(0)).toString(),
  };
}

async function until(file, condition, limitMs) {
  for (const end = Date.now() + limitMs; Date.now() < end; await pause(10)) {
    const now = await status(file).catch(() => undefined);
    if (now && (now.errors > 0n || condition(now))) return now;
  }
  return status(file);
}

async function stopAndContinue(pid) {
  for (const end = Date.now() + durationMs; Date.now() < end; await pause(20)) {
    process.kill(pid, 'SIGSTOP');
    await pause(5);
    process.kill(pid, 'SIGCONT');
  }
}

const disturbances = [
  ['alone', () => pause(durationMs)],
  ['SIGSTOP and SIGCONT', stopAndContinue],
  ['interrupted', (pid) => run(path.join(tools, 'interrupter'), [String(pid), String(durationMs)])],
];

async function check(victim, number) {
  const file = path.join(directory, `${number}`);
  const child = spawn(path.join(programs, victim.program), [file, ...(victim.arguments ?? [])], {
    stdio: ['ignore', 'pipe', 'inherit'],
    detached: true,
  });
  const ended = once(child, 'exit');
  const first = await until(file, (now) => now.ready || child.exitCode !== null, 20_000);
  if (child.exitCode === 77) return `skipped: ${first.text}`;
  const lines = [];
  for (const [name, disturb] of disturbances) {
    const before = await status(file);
    await disturb(child.pid);
    const after = await until(file, (now) => now.rounds > before.rounds, 10_000);
    lines.push(`${name} ${after.rounds - before.rounds}`);
    if (after.errors > 0n || after.rounds <= before.rounds || child.exitCode !== null) {
      lines.push(`FAILED ${after.text}`);
      process.exitCode = 1;
      break;
    }
  }
  try {
    process.kill(-child.pid, 'SIGKILL');
    process.kill(child.pid, 'SIGKILL');
  } catch {
    // It ended by itself, which has been said.
  }
  await ended;
  return lines.join(', ');
}

for (const [number, victim] of list.entries()) {
  if (positionals.length > 0 && !positionals.includes(victim.name)) continue;
  console.log(`${victim.name}: ${await check(victim, number)}`);
}
await rm(directory, { recursive: true, force: true });
