// Formats the C and C++ sources with clang-format; --check only says which would change.
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const folders = ['native', 'test/victims', 'test/vm/guest', 'bench'];

const sources = folders
  .map((folder) => join(root, folder))
  .filter(existsSync)
  .flatMap((folder) => readdirSync(folder, { recursive: true }).map((name) => join(folder, name)))
  .filter((name) => /\.(cc|c|h)$/.test(name));

if (sources.length > 0) {
  const mode = process.argv.includes('--check') ? ['--dry-run', '--Werror'] : ['-i'];
  const done = spawnSync('clang-format', [...mode, ...sources], { stdio: 'inherit' });
  if (done.error) console.error(`clang-format: ${done.error.message}; run npm run setup`);
  process.exitCode = done.status ?? 1;
}
