// Makes a fresh machine ready: system packages, node modules, native and TypeScript builds.
// What is there already is left alone. Where it may not install, it says what is missing and fails.
// Usage: node scripts/setup.mjs [build] [demo] [test] [vm]   (no name: all but vm)
import { spawnSync } from 'node:child_process';
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { delimiter, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));

/** Debian package -> what shows that it is there: a command, or a file by its absolute path. */
const packages = {
  build: {
    'g++': 'g++',
    make: 'make',
    python3: 'python3',
    'libc6-dev': '/usr/include/x86_64-linux-gnu/sys/ptrace.h',
    'liblz4-dev': '/usr/include/lz4.h',
    'libssl-dev': '/usr/include/openssl/evp.h',
  },
  demo: { 'redis-server': 'redis-server' },
  test: {
    'clang-format': 'clang-format',
    'redis-tools': 'redis-benchmark',
    memcached: 'memcached',
    'libmemcached-tools': 'memcaslap',
    nginx: 'nginx',
    wrk: 'wrk',
    sqlite3: 'sqlite3',
    'libsqlite3-dev': '/usr/include/sqlite3.h',
    procps: 'ps',
    iproute2: 'ss',
    'util-linux': 'setpriv',
  },
  vm: {
    'qemu-system-x86': 'qemu-system-x86_64',
    'busybox-static': 'busybox',
    'squashfs-tools': 'mksquashfs',
    kmod: 'depmod',
    cpio: 'cpio',
    zstd: 'zstd',
    'xz-utils': 'xz',
    gcc: 'gcc',
    'libc6-dev': '/usr/lib/x86_64-linux-gnu/libc.a',
    iproute2: 'ip',
    'util-linux': 'setpriv',
  },
};

/** What is set up when nothing is named: the virtual machines are large and a matter of their own. */
const usual = ['build', 'demo', 'test'];

const policyFile = '/usr/sbin/policy-rc.d';
const policyMark = '# made by replpage setup while it installs packages';

function fail(message) {
  console.error(`setup: ${message}`);
  process.exit(1);
}

function present(probe) {
  if (probe.startsWith('/')) return existsSync(probe);
  const folders = [...(process.env.PATH ?? '').split(delimiter), '/usr/sbin', '/sbin'];
  return folders.some((folder) => existsSync(join(folder, probe)));
}

function run(command, args, extra = {}) {
  // Everything here is progress: stdout stays free for what comes after the set-up.
  const done = spawnSync(command, args, { cwd: root, stdio: ['ignore', 2, 2], ...extra });
  return done.error === undefined && done.status === 0;
}

/** Runs `body` while no package may start its service, and puts the machine's policy back. */
function withoutServices(body) {
  const ours = () =>
    existsSync(policyFile) && readFileSync(policyFile, 'utf8').includes(policyMark);
  if (existsSync(policyFile) && !ours()) return body();
  // A signal must not leave the policy behind: the child gets it too, and we go on to `finally`.
  const ignore = () => {};
  process.on('SIGINT', ignore).on('SIGTERM', ignore);
  try {
    writeFileSync(policyFile, `#!/bin/sh\n${policyMark}\nexit 101\n`, { mode: 0o755 });
    return body();
  } finally {
    if (ours()) rmSync(policyFile);
    process.off('SIGINT', ignore).off('SIGTERM', ignore);
  }
}

function installPackages(groups) {
  const wanted = groups.flatMap((group) => Object.entries(packages[group]));
  const missing = wanted.filter(([, probe]) => !present(probe)).map(([name]) => name);
  if (missing.length === 0) return;
  const byHand = `sudo apt-get install --no-install-recommends ${missing.join(' ')}`;
  if (process.getuid() !== 0) fail(`missing system packages; as root run: ${byHand}`);
  if (!present('apt-get')) fail(`missing, and there is no apt-get here: ${missing.join(' ')}`);
  console.error(`setup: installing ${missing.join(' ')}`);
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  const lock = ['-o', 'DPkg::Lock::Timeout=300', '-qq'];
  const installed = withoutServices(() => {
    run('apt-get', [...lock, 'update'], { env });
    return run('apt-get', [...lock, 'install', '-y', '--no-install-recommends', ...missing], {
      env,
    });
  });
  const still = wanted.filter(([, probe]) => !present(probe)).map(([name]) => name);
  if (!installed || still.length > 0) {
    fail(`apt-get could not install ${(still.length > 0 ? still : missing).join(' ')}: ${byHand}`);
  }
}

function installModules() {
  const lock = join(root, 'package-lock.json');
  const installed = join(root, 'node_modules/.package-lock.json');
  if (existsSync(installed) && statSync(installed).mtimeMs >= statSync(lock).mtimeMs) return;
  console.error('setup: npm ci');
  if (!run('npm', ['ci', '--no-fund', '--no-audit'])) {
    fail('npm ci failed: the packages of package-lock.json could not be fetched');
  }
}

/** Newest change below the paths, in ms; 0 where there is nothing. */
function newest(paths) {
  let time = 0;
  for (const path of paths.map((name) => join(root, name)).filter(existsSync)) {
    const stat = statSync(path);
    // A folder's own time shows that a file was removed.
    time = Math.max(time, stat.mtimeMs);
    if (!stat.isDirectory()) continue;
    for (const entry of readdirSync(path, { recursive: true })) {
      time = Math.max(time, statSync(join(path, entry)).mtimeMs);
    }
  }
  return time;
}

/** What compilers say goes to a file, and is shown where they fail. */
function quietly(what, build) {
  const log = join(root, 'build', 'setup.log');
  mkdirSync(dirname(log), { recursive: true });
  const out = openSync(log, 'w');
  const started = Date.now();
  process.stderr.write(`setup: building ${what} ... `);
  try {
    build(out);
    console.error(`done in ${Math.round((Date.now() - started) / 1000)} s`);
  } catch (error) {
    console.error(`failed\n${readFileSync(log, 'utf8')}`);
    fail(`could not build ${what}: ${error.message}; all of the output is in ${log}`);
  } finally {
    closeSync(out);
  }
}

async function buildStale(withTests) {
  const { buildNative, buildTypeScript, runTargets, stamps } = await import('./build.mjs');
  const native = newest(['native', 'binding.gyp', 'scripts/native-sources.mjs']);
  if (native > newest([withTests ? stamps.native : stamps.run])) {
    const what = withTests ? 'the native parts and their tests' : 'the native parts';
    const targets = withTests ? [] : runTargets;
    quietly(`${what} (some minutes)`, (out) => buildNative({ targets, out }));
  }
  if (newest(['src', 'tsconfig.json', 'tsconfig.build.json']) > newest([stamps.ts])) {
    quietly('dist', (out) => buildTypeScript(out));
  }
}

const [major, minor] = process.versions.node.split('.').map(Number);
if (process.platform !== 'linux') fail('replpage runs on Linux only');
if (major < 20 || (major === 20 && minor < 17))
  fail(`needs Node.js 20.17, this is ${process.version}`);
const named = process.argv.slice(2);
const unknown = named.find((name) => packages[name] === undefined);
if (unknown) fail(`unknown group ${unknown}: ${Object.keys(packages).join(', ')}`);
const groups = named.length > 0 ? named : usual;
installPackages(groups);
installModules();
await buildStale(groups.includes('test'));
