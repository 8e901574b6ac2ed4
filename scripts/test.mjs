// Runs the suites and prints, as the very last line, "N passed, N failed, N skipped" over all of
// them. The exit status says the same. A suite that dies before it has counted is a failure.
// Usage: node scripts/test.mjs [lint] [types] [native] [unit] [e2e] [vm] [vm-short] [usual]
// "usual", and no name at all, stand for all of them but the virtual machines.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const bin = (name) => join(root, 'node_modules', '.bin', name);

function run(command, args, options = {}) {
  const done = spawnSync(command, args, {
    cwd: root,
    stdio: ['ignore', 'inherit', 'inherit'],
    maxBuffer: 256 * 1024 * 1024,
    ...options,
  });
  if (done.error) console.error(`${command}: ${done.error.message}`);
  return done;
}

/** A check that has no cases of its own counts as one. */
function check(command, args) {
  const passed = run(command, args).status === 0;
  return { passed: passed ? 1 : 0, failed: passed ? 0 : 1, skipped: 0 };
}

/** The tool's own closing line, `# { total: 3, pass: 2, skip: 1 }`, leaves zero counts out. */
function countClosing(text) {
  const closing = text.split('\n').findLast((line) => line.startsWith('# {'));
  if (closing === undefined) return undefined;
  const get = (key) => Number(new RegExp(`\\b${key}: (\\d+)`).exec(closing)?.[1] ?? 0);
  return { passed: get('pass'), failed: get('fail'), skipped: get('skip') + get('todo') };
}

/** Plain TAP, as core_test prints it. */
function countTap(text) {
  const count = { passed: 0, failed: 0, skipped: 0 };
  for (const line of text.split('\n')) {
    if (/^not ok\b/.test(line)) count.failed++;
    else if (/^ok\b.*# SKIP/i.test(line)) count.skipped++;
    else if (/^ok\b/.test(line)) count.passed++;
  }
  return count;
}

/** What failed of a text in TAP, with its file and what was said of it: told again at the very end. */
function failuresIn(text) {
  const lines = text.split('\n');
  let file = '';
  return lines.flatMap((line, at) => {
    file = /^# Subtest: (.*)/.exec(line)?.[1] ?? file;
    if (!/^\s*not ok\b/.test(line)) return [];
    const indent = line.search(/\S/);
    const end = lines.findIndex((next, k) => k > at && next.search(/\S/) === indent);
    return [`# ${file}`, ...lines.slice(at, end < 0 ? lines.length : end).slice(0, detailLines)];
  });
}
const detailLines = 40;
const failures = [];

/** The counts, made to agree with how the suite ended. */
function settle(count, status) {
  const known = count ?? { passed: 0, failed: 0, skipped: 0 };
  if (status !== 0 && known.failed === 0) known.failed = 1;
  if (count === undefined && status === 0) known.failed = 1;
  return known;
}

/** The files of tests in folders, and files themselves. */
function testsIn(places) {
  const below = (place) =>
    place.endsWith('.ts')
      ? [place]
      : readdirSync(join(root, place), { recursive: true }).map((name) => join(place, name));
  return places
    .filter((place) => existsSync(join(root, place)))
    .flatMap(below)
    .filter((name) => name.endsWith('.test.ts'))
    .sort();
}

/**
 * `only`: paths that are wanted. `limitMs`: then it and all that it has started are told to end, and
 * soon killed.
 */
function tapSuite(folders, args = [], { only = /./, ...options } = {}, limitMs = undefined) {
  const files = testsIn(folders).filter((name) => only.test(name));
  if (files.length === 0) return { passed: 0, failed: 0, skipped: 0 };
  const scratch = mkdtempSync(join(tmpdir(), 'replpage-test-'));
  try {
    const output = join(scratch, 'out.tap');
    const command = [bin('tap'), 'run', '-o', output, ...args, ...files];
    const limit = [`--kill-after=60`, String(Math.ceil((limitMs ?? 0) / 1000))];
    const limited = limitMs === undefined ? command : ['timeout', ...limit, ...command];
    // They end with us: in a process group of their own no Ctrl-C reaches them.
    const [program, ...rest] = ['setpriv', '--pdeathsig', 'TERM', '--', ...limited];
    const { status } = run(program, rest, options);
    const text = existsSync(output) ? readFileSync(output, 'utf8') : '';
    failures.push(...failuresIn(text));
    return settle(countClosing(text), status);
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

function nativeSuite() {
  const program = join(root, 'build/Release/core_test');
  if (!existsSync(program)) return { passed: 0, failed: 1, skipped: 0 };
  const { status, stdout } = run(program, [], {
    stdio: ['ignore', 'pipe', 'inherit'],
    encoding: 'utf8',
    timeout: 600_000,
  });
  process.stdout.write(stdout ?? '');
  failures.push(...failuresIn(stdout ?? ''));
  return settle(countTap(stdout ?? ''), status);
}

function vm() {
  const partial = ['KERNELS', 'VICTIMS', 'TRACKERS', 'PARTS'].some(
    (name) => `REPLPAGE_VM_${name}` in process.env,
  );
  if (!partial) rmSync(join(root, 'build/vm/findings'), { recursive: true, force: true });
  // The engine takes longest: on both kernels at once. The others want the machine alone.
  const suite = (jobs, only) =>
    tapSuite(['test/vm'], [`--jobs=${jobs}`, '--timeout=36000'], { only });
  const count = add(suite(1, /^(?!.*engine-)/), suite(2, /engine-/));
  sweepNodes();
  if (!partial) run(process.execPath, ['scripts/vm.mjs', 'report']);
  return count;
}

/** Downloads, images and tests together; a quarter of that on two cores at rest. */
const vmShortMs = 20 * 60_000;

/** Why virtual machines cannot run here; undefined where they can. Installs what they need. */
function whyNoVms() {
  if (process.getuid() !== 0) return 'they need root, for a network namespace';
  const setUp = run(process.execPath, ['scripts/setup.mjs', 'build', 'demo', 'test', 'vm']);
  if (setUp.status !== 0) return 'what they need cannot be installed';
  const stdio = ['pipe', 'ignore', 'inherit'];
  if (run('unshare', ['--net', '--mount', 'true'], { stdio }).status !== 0)
    return 'this machine allows no network namespace';
  // An empty machine, told to end at once, shows whether QEMU works here.
  const empty = ['-M', 'q35', '-accel', 'tcg', '-display', 'none', '-S', '-monitor', 'stdio'];
  const probe = run('qemu-system-x86_64', empty, { input: 'quit\n', stdio, timeout: 30_000 });
  return probe.status === 0 ? undefined : 'QEMU cannot run here';
}

const unavailableStatus = 69;

/**
 * A part of five minutes, for continuous integration: skipped where virtual machines cannot run, and
 * where they are too slow.
 */
function vmShort() {
  const counted = (key, why) => {
    console.log(`# vm-short ${key === 'skipped' ? 'is skipped' : 'failed'}: ${why}`);
    return { passed: 0, failed: 0, skipped: 0, [key]: 1 };
  };
  const end = Date.now() + vmShortMs;
  const leftMs = () => Math.max(1, end - Date.now());
  const tooSlow = () => Date.now() >= end;
  const slowly = `not done within ${vmShortMs / 60_000} minutes, which says nothing about the tests`;
  const why = whyNoVms();
  if (why !== undefined) return counted('skipped', why);
  for (const kernel of ['6.1', '6.12']) {
    const command = ['scripts/vm.mjs', 'prepare', `--kernel=${kernel}`];
    const made = run(process.execPath, command, { timeout: leftMs() });
    if (tooSlow()) return counted('skipped', slowly);
    if (made.status === unavailableStatus)
      return counted('skipped', `packages of kernel ${kernel} cannot be had here`);
    if (made.status !== 0) return counted('failed', `no images for kernel ${kernel}`);
  }
  const env = { ...process.env, REPLPAGE_VM_SHORT: '1' };
  const args = ['--jobs=1', '--timeout=1200'];
  let count = { passed: 0, failed: 0, skipped: 0 };
  for (const file of testsIn(['test/vm'])) {
    const one = tapSuite([file], args, { env }, leftMs());
    if (!tooSlow()) {
      count = add(count, one);
      continue;
    }
    // What was cut off has left its nodes, and says nothing; what failed before that does.
    sweepNodes();
    return count.failed > 0 ? count : counted('skipped', slowly);
  }
  return count;
}

/** Nodes of tests that were killed. */
function sweepNodes() {
  run(process.execPath, ['scripts/vm.mjs', 'down', '--name=none']);
}

function lint() {
  const parts = [
    check(bin('eslint'), ['.']),
    check(bin('prettier'), ['--check', '--log-level', 'warn', '.']),
    check(process.execPath, ['scripts/format-native.mjs', '--check']),
  ];
  return parts.reduce(add);
}

const suites = {
  lint,
  types: () => check(bin('tsc'), ['--noEmit']),
  native: nativeSuite,
  unit: () => tapSuite(['test/unit', 'test/sim', 'test/tidy']),
  // These own ports, namespaces and whole processes: one file at a time.
  e2e: () => tapSuite(['test/e2e', 'test/cluster'], ['--jobs=1', '--timeout=600']),
  // Virtual machines: each test has as many as the machine can run at a time.
  vm,
  'vm-short': vmShort,
};
/** What runs when nothing is named: virtual machines take long, and packages of their own. */
const usual = Object.keys(suites).filter((name) => !name.startsWith('vm'));

function add(a, b) {
  return {
    passed: a.passed + b.passed,
    failed: a.failed + b.failed,
    skipped: a.skipped + b.skipped,
  };
}

const line = ({ passed, failed, skipped }) =>
  `${passed} passed, ${failed} failed, ${skipped} skipped`;

const named = process.argv.slice(2);
let total = { passed: 0, failed: 0, skipped: 0 };
const summary = [];
const wanted = named.length > 0 ? named : ['usual'];
for (const name of wanted.flatMap((each) => (each === 'usual' ? usual : [each]))) {
  if (!suites[name]) throw new Error(`unknown suite ${name}: ${Object.keys(suites).join(', ')}`);
  const started = Date.now();
  const count = suites[name]();
  total = add(total, count);
  summary.push(`# ${name}: ${line(count)} in ${((Date.now() - started) / 1000).toFixed(0)} s`);
}
console.log([...failures, ...summary].join('\n'));
process.exitCode = total.failed > 0 || total.passed === 0 ? 1 : 0;
console.log(line(total));
