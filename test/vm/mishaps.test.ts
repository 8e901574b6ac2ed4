/** What goes wrong with the bed itself: clear words, and nothing left behind. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import t, { type Test } from 'tap';
import { root } from '../support/repository.js';
import { Bed } from './bed/bed.js';
import { requireRoom } from './bed/cache.js';
import { namespaceOf } from './bed/network.js';
import { until } from './bed/node.js';
import { lives, type ProcessId } from './bed/processes.js';
import { bedNames, folderOf, readState } from './bed/state.js';
import { short } from './on-bed.js';
import { patiently } from './bed/patience.js';

const startMs = patiently(120_000);
const kernel = '6.12';

const program = [process.execPath, path.join(root, 'scripts/vm.mjs')] as const;

function tool(...args: string[]): ChildProcess {
  return spawn(program[0], [program[1], ...args], { stdio: 'ignore' });
}

/** Runs a command line; gives its exit status and what it said on standard error. */
async function said(
  words: readonly string[],
  env: Readonly<Record<string, string>>,
): Promise<{ readonly status: number | null; readonly text: string }> {
  const [command = '', ...args] = words;
  const stdio = ['ignore', 'ignore', 'pipe'] as const;
  const child = spawn(command, args, { stdio: [...stdio], env: { ...process.env, ...env } });
  let text = '';
  child.stderr?.on('data', (chunk: Buffer) => (text += chunk.toString()));
  const [status] = (await once(child, 'close')) as [number | null];
  return { status, text };
}

/** A cache of its own, which must be as empty afterwards as before: nothing half made stays. */
async function withEmptyCache(t: Test, body: (folder: string) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(path.join(tmpdir(), 'replpage-vm-cache-'));
  await body(folder);
  const files = readdirSync(folder, { recursive: true, encoding: 'utf8' });
  const left = files.filter((name) => /(^|\/)\.new-|\.deb$|\.img$|vmlinux$/.test(name));
  t.same(left, [], 'nothing half made is left');
  rmSync(folder, { recursive: true });
}

/** Starts `up` in a process of its own; gives it as soon as its node's QEMU runs. */
async function startUp(
  bed: string,
): Promise<{ readonly child: ChildProcess; readonly qemu: ProcessId }> {
  const child = tool('up', '1', '--cold', `--name=${bed}`, `--kernel=${kernel}`);
  let qemu: ProcessId | undefined;
  await until(
    () => {
      qemu = readState(bed)?.nodes[0]?.process;
      return Promise.resolve(qemu !== undefined);
    },
    startMs,
    'no QEMU was started',
  );
  if (!qemu) throw new Error('no QEMU');
  return { child, qemu };
}

/** Of processes whose command line names a file in a folder. */
function programsAt(folder: string): string[] {
  const lines = readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ');
      } catch {
        return '';
      }
    });
  return lines.filter((line) => line.includes(folder));
}

function isGone(t: Test, bed: string, qemu?: ProcessId): void {
  if (qemu) t.notOk(lives(qemu), 'QEMU does not run');
  t.notOk(existsSync(folderOf(bed)), 'the bed has no folder');
  t.notOk(existsSync(`/run/netns/${namespaceOf(bed)}`), 'the bed has no network');
  t.notOk(bedNames().includes(bed), 'the bed is not known');
}

t.test('Ctrl-C', { skip: short && 'short' }, async (t) => {
  const bed = `interrupted-${process.pid}`;
  const { child, qemu } = await startUp(bed);
  const ended = once(child, 'exit');
  child.kill('SIGINT');
  t.same(await ended, [130, null], 'it ends with the status of an interrupt');
  isGone(t, bed, qemu);
});

t.test('Ctrl-C while images are made', (t) =>
  withEmptyCache(t, async (folder) => {
    const env = { ...process.env, REPLPAGE_VM_CACHE: folder };
    const words = [program[1], 'prepare', `--kernel=${kernel}`];
    const child = spawn(program[0], words, { stdio: 'ignore', env });
    const ended = once(child, 'exit');
    const begun = (): boolean => {
      const made = path.join(folder, 'kernels');
      return existsSync(made) && readdirSync(made).some((name) => name.startsWith('.new-'));
    };
    await until(() => Promise.resolve(begun()), startMs, 'no image is made');
    child.kill('SIGINT');
    t.same(await ended, [130, null], 'it ends with the status of an interrupt');
    t.same(programsAt(folder), [], 'none of its programs runs on');
  }),
);

t.test('a killed tool', { skip: short && 'short' }, async (t) => {
  const bed = `killed-${process.pid}`;
  const { child, qemu } = await startUp(bed);
  const ended = once(child, 'exit');
  child.kill('SIGKILL');
  await ended;
  t.ok(lives(qemu), 'its node is left');
  const [status] = (await once(tool('down', `--name=${bed}`), 'exit')) as [number | null];
  t.equal(status, 0);
  isGone(t, bed, qemu);
});

t.test('a kernel that does not exist', async (t) => {
  const name = `nowhere-${process.pid}`;
  await t.rejects(Bed.up({ kernel: 'linux-image-9.99-amd64', nodes: 1, name }), {
    message: /no kernel package linux-image-9.99-amd64; apt knows .*linux-image-amd64/,
  });
  isGone(t, name);
});

t.test('no network to the package registry', (t) =>
  withEmptyCache(t, async (folder) => {
    const config = path.join(folder, 'apt.conf');
    // Nobody listens there.
    const proxies = ['http', 'https'].map(
      (each) => `Acquire::${each}::Proxy "http://127.0.0.1:9";`,
    );
    writeFileSync(config, `${proxies.join('\n')}\n`);
    const env = { REPLPAGE_VM_CACHE: folder, APT_CONFIG: config };
    const { status, text } = await said([...program, 'prepare', `--kernel=${kernel}`], env);
    t.equal(status, 69);
    t.match(text, /packages could not be downloaded \(is there a network\?\): .*linux-image/);
  }),
);

t.test('a node that never answers', { skip: short && 'short' }, async (t) => {
  const name = `mute-${process.pid}`;
  // Too little memory to unpack the initial RAM disk: the kernel gives up, and says so.
  const failed = Bed.up({ kernel, nodes: 1, name, cold: true, memoryMiB: 64 });
  await t.rejects(
    failed.then((bed) => bed.down()),
    { message: /n1: .*\nits console ends: [^]*\w{4}/ },
  );
  isGone(t, name);
});

t.test('too many nodes, and no room', async (t) => {
  await t.rejects(Bed.up({ kernel, nodes: 10 }), { message: /1 to 9 nodes/ });
  await withEmptyCache(t, async (folder) => {
    // A file system of 8 MiB that only the tool sees.
    const script = 'mount -t tmpfs -o size=8m tmpfs "$1" && shift && exec "$@"';
    const inside = ['unshare', '--mount', 'sh', '-c', script, 'sh', folder];
    const words = [...inside, ...program, 'prepare', `--kernel=${kernel}`];
    const { status, text } = await said(words, { REPLPAGE_VM_CACHE: folder });
    t.equal(status, 1);
    t.match(text, /\d MiB free, \d+ MiB are needed: make room, or name another folder/);
  });
  const folder = path.join(tmpdir(), `replpage-vm-room-${process.pid}`);
  t.throws(() => requireRoom(folder, 2 ** 60), { message: /MiB free.*REPLPAGE_VM_CACHE/ });
  rmSync(folder, { recursive: true });
});
