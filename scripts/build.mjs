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
/** Files whose time says from when on changes are not in each build. */
export const stamps = { native: 'build/.built', ts: 'dist/.built' };

const bin = (name) => join(root, 'node_modules', '.bin', name);

function run(command, args, cwd = root) {
  // Builds talk on stderr, so that stdout stays free for what the caller prints.
  execFileSync(command, args, { cwd, stdio: ['ignore', 2, 2] });
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

/** Recompiles what changed; a new or removed source file changes the generated makefiles too. */
export function buildNative(gypArgs = [], cwd = root) {
  const started = new Date();
  run(bin('node-gyp'), ['configure', ...nodeDir(), ...gypArgs], cwd);
  run(bin('node-gyp'), ['build', '--jobs', String(availableParallelism())], cwd);
  stamp(join(cwd, stamps.native), started);
}

/** node-gyp builds in the folder it runs in: a folder of links gives a sanitized build its own. */
function buildSanitized(sanitizer, folder) {
  const shadow = join(root, folder);
  mkdirSync(shadow, { recursive: true });
  for (const name of ['binding.gyp', 'package.json', 'native', 'scripts']) {
    if (!existsSync(join(shadow, name))) symlinkSync(join(root, name), join(shadow, name));
  }
  buildNative(['--', `-Dsanitizer=${sanitizer}`], shadow);
}

export function buildTypeScript() {
  // Made beside and swapped in, so that a command started meanwhile finds all of it.
  const started = new Date();
  const fresh = join(root, 'build', 'dist-new');
  const old = join(root, 'build', 'dist-old');
  for (const folder of [fresh, old]) rmSync(folder, { recursive: true, force: true });
  run(bin('tsc'), ['-p', 'tsconfig.build.json', '--outDir', fresh]);
  chmodSync(join(fresh, 'cli/main.js'), 0o755);
  stamp(join(fresh, '.built'), started);
  if (existsSync(join(root, 'dist'))) renameSync(join(root, 'dist'), old);
  renameSync(fresh, join(root, 'dist'));
  rmSync(old, { recursive: true, force: true });
}

const targets = {
  native: () => buildNative(),
  ts: buildTypeScript,
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
