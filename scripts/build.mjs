// Builds what is named on the command line: native, ts, asan, tsan. Nothing is downloaded: the
// Node.js headers are those beside the running node, where its package put them.
import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  realpathSync,
  renameSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
/** Files whose time says from when on changes are not in each build; `run`: without the tests. */
export const stamps = { native: 'build/.built', run: 'build/.built-run', ts: 'dist/.built' };
/** What it takes to run, of the targets of binding.gyp. */
export const runTargets = ['replpage', 'replpage-keeper', 'replpage-pager'];

const bin = (name) => join(root, 'node_modules', '.bin', name);

/** Builds talk on stderr, so that stdout stays free for what the caller prints, or to `out`. */
function run(command, args, cwd = root, out = 2) {
  execFileSync(command, args, { cwd, stdio: ['ignore', out, out] });
}

/** Dated to the start: a source that changed while it was being built makes the build stale. */
function stamp(path, started) {
  writeFileSync(path, '');
  utimesSync(path, started, started);
}

function nodeDir() {
  const prefix = dirname(dirname(realpathSync(process.execPath)));
  return existsSync(join(prefix, 'include/node/node_version.h')) ? [`--nodedir=${prefix}`] : [];
}

/**
 * Recompiles what changed; a new or removed source file changes the generated makefiles too.
 * `targets`: of binding.gyp, all when none is named; `out`: descriptor for what compilers say.
 */
export function buildNative({ gypArgs = [], cwd = root, targets = [], out = 2 } = {}) {
  const started = new Date();
  const jobs = ['--jobs', String(availableParallelism())];
  run(bin('node-gyp'), ['configure', ...nodeDir(), ...gypArgs], cwd, out);
  run(bin('node-gyp'), ['build', ...jobs, ...targets], cwd, out);
  stamp(join(cwd, stamps.run), started);
  if (targets.length === 0) stamp(join(cwd, stamps.native), started);
}

/** node-gyp builds in the folder it runs in: a folder of links gives a sanitized build its own. */
function buildSanitized(sanitizer, folder) {
  const shadow = join(root, folder);
  mkdirSync(shadow, { recursive: true });
  for (const name of ['binding.gyp', 'package.json', 'native', 'scripts']) {
    if (!existsSync(join(shadow, name))) symlinkSync(join(root, name), join(shadow, name));
  }
  buildNative({ gypArgs: ['--', `-Dsanitizer=${sanitizer}`], cwd: shadow });
}

export function buildTypeScript(out = 2) {
  // Made beside and swapped in, so that a command started meanwhile finds all of it.
  const started = new Date();
  const fresh = join(root, 'build', 'dist-new');
  const old = join(root, 'build', 'dist-old');
  for (const folder of [fresh, old]) rmSync(folder, { recursive: true, force: true });
  run(bin('tsc'), ['-p', 'tsconfig.build.json', '--outDir', fresh], root, out);
  chmodSync(join(fresh, 'cli/main.js'), 0o755);
  stamp(join(fresh, '.built'), started);
  if (existsSync(join(root, 'dist'))) renameSync(join(root, 'dist'), old);
  renameSync(fresh, join(root, 'dist'));
  rmSync(old, { recursive: true, force: true });
}

const targets = {
  native: () => buildNative(),
  ts: () => buildTypeScript(),
  asan: () => buildSanitized('address', 'build-asan'),
  tsan: () => buildSanitized('thread', 'build-tsan'),
};

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  for (const name of process.argv.slice(2)) {
    if (!targets[name])
      throw new Error(`unknown target ${name}: ${Object.keys(targets).join(', ')}`);
    targets[name]();
  }
  if (process.argv.includes('native')) {
    const made = readdirSync(join(root, 'build/Release')).filter((n) => /^(replpage|core)/.test(n));
    console.error(`built ${made.join(' ')}`);
  }
}
