// Lists the C++ sources below the given folders, one a line, for binding.gyp.
// An empty or missing folder prints nothing, and binding.gyp then leaves its target out.
import { readdirSync } from 'node:fs';
import { join } from 'node:path';

for (const folder of process.argv.slice(2)) {
  let entries = [];
  try {
    entries = readdirSync(folder, { recursive: true });
  } catch (error) {
    if (error.code !== 'ENOENT') throw error;
  }
  for (const entry of entries.sort()) {
    if (/\.(cc|S)$/.test(entry)) console.log(join(folder, entry));
  }
}
