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
  writeFileSync,
} from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
/** Files whose time says when each build was last complete. */
export const stamps = { native: 'build/.built', ts: 'dist/.built' };

const bin = (name) => join(root, 'node_modules', '.bin', name);

function run(command, args, cwd = root) {
  // Builds talk on stderr, so that stdout stays free for what the caller prints.
  execFileSync(command, args, { cwd, stdio: ['ignore', 2, 2] });
}

function nodeDir() {
  const prefix = dirname(dirname(realpathSync(process.execPath)));
  return existsSync(join(prefix, 'include/node/node_version.h')) ? [`--nodedir=${prefix}`] : [];
}

/** Recompiles what changed; a new or removed source file changes the generated makefiles too. */
export function buildNative(gypArgs = [], cwd = root) {
  run(bin('node-gyp'), ['configure', ...nodeDir(), ...gypArgs], cwd);
  run(bin('node-gyp'), ['build', '--jobs', String(availableParallelism())], cwd);
  writeFileSync(join(cwd, stamps.native), '');
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
  const fresh = join(root, 'build', 'dist-new');
  const old = join(root, 'build', 'dist-old');
  for (const folder of [fresh, old]) rmSync(folder, { recursive: true, force: true });
  run(bin('tsc'), ['-p', 'tsconfig.build.json', '--outDir', fresh]);
  chmodSync(join(fresh, 'cli/main.js'), 0o755);
  writeFileSync(join(fresh, '.built'), '');
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
