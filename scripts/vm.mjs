// The developer's door to the virtual machines: npm run vm -- up 3. See test/vm/README.md.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const args = process.argv.slice(2);

/** What makes nodes needs the built project and packages; the rest needs only modules to run. */
function setUp() {
  const makes = args.some((each) => each === 'up' || each === 'prepare');
  if (!makes && existsSync(join(root, 'node_modules/typescript'))) return true;
  const groups = ['scripts/setup.mjs', 'build', 'demo', 'test', 'vm'];
  return spawnSync(process.execPath, groups, { cwd: root, stdio: 'inherit' }).status === 0;
}

if (setUp()) {
  const { transpile } = await import('./transpile.mjs');
  const out = join(root, 'build/vm/tool');
  await transpile(['test/vm', 'test/support', 'src/base'], out);
  const { main } = await import(join(out, 'test/vm/cli.js'));
  process.exitCode = await main(args);
} else process.exitCode = 1;
