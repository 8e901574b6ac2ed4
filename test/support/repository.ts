/** Where things are, from the sources as from compiled copies of them. */
import { existsSync } from 'node:fs';
import path from 'node:path';

function findRoot(): string {
  let folder = import.meta.dirname;
  while (!existsSync(path.join(folder, 'binding.gyp'))) {
    const parent = path.dirname(folder);
    if (parent === folder) throw new Error(`no binding.gyp above ${import.meta.dirname}`);
    folder = parent;
  }
  return folder;
}

export const root = findRoot();
export const cliPath = path.join(root, 'dist/cli/main.js');
export const addonPath = path.join(root, 'build/Release/replpage.node');
export const victimsDir = path.join(root, 'test/victims');
export const toolsDir = path.join(root, 'test/support/tools');
export const programsDir = path.join(root, 'test/support/programs');

/** Why the tests that need a running engine cannot run here; undefined when they can. */
export function whyNoEngine(): string | undefined {
  if (process.getuid?.() !== 0) return 'protecting processes needs root';
  if (!existsSync(cliPath)) return 'dist/ is not built';
  return undefined;
}
