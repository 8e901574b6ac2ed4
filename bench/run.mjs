// Compiles the benchmarks and runs them: node bench/run.mjs engine [options], or npm run bench.
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';

const here = import.meta.dirname;
const compiler = join(here, '../node_modules/.bin/tsc');
const compiled = spawnSync(compiler, ['-p', here], { stdio: ['ignore', 2, 2] });
if (compiled.status !== 0) {
  console.error('bench: the benchmarks do not compile (npm ci first?)');
  process.exit(2);
}
await import(join(here, 'build/bench/main.js'));
