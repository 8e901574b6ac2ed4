// The developer's door to the virtual machines: npm run vm -- up 3. See test/vm/README.md.
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { transpile } from './transpile.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const out = join(root, 'build/vm/tool');
await transpile(['test/vm', 'test/support', 'src/base'], out);
const { main } = await import(join(out, 'test/vm/cli.js'));
process.exitCode = await main(process.argv.slice(2));
