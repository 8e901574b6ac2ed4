// The developer's door to the virtual machines: npm run vm -- up 3. See test/vm/README.md.
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const args = process.argv.slice(2);

/** Help needs nothing, and installs nothing. */
const asked =
  args.length === 0 ||
  args[0] === 'help' ||
  (args[0] !== 'sh' && args.some((each) => ['--help', '-h'].includes(each)));

/** What makes nodes needs the built project and packages; the rest needs only modules to run. */
function setUp() {
  const makes = ['up', 'prepare'].includes(args[0]);
  if (!makes && existsSync(join(root, 'node_modules/typescript'))) return true;
  const all = ['build', 'demo', 'test', 'vm'];
  const groups = ['scripts/setup.mjs', ...(makes ? all : [])];
  return spawnSync(process.execPath, groups, { cwd: root, stdio: 'inherit' }).status === 0;
}

if (asked) {
  process.stdout.write(readFileSync(join(root, 'test/vm/usage.txt'), 'utf8'));
  process.exitCode = args.length === 0 ? 64 : 0;
} else if (setUp()) {
  const { transpile } = await import('./transpile.mjs');
  const out = join(root, 'build/vm/tool');
  await transpile(['test/vm', 'test/support', 'src/base'], out);
  const { main } = await import(join(out, 'test/vm/cli.js'));
  process.exitCode = await main(args);
} else process.exitCode = 1;
