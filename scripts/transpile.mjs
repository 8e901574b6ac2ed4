// TypeScript to JavaScript, file by file and without looking at types, for programs that are not part
// of dist/: what runs inside the virtual machines, and the tool that starts them.
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { renameSync, utimesSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));

/** In whole milliseconds: utimes keeps no more. */
const changed = (path) => (existsSync(path) ? Math.round(statSync(path).mtimeMs) : 0);

const sourcesIn = (folder) =>
  readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.ts') && !name.endsWith('.d.ts'))
    .map((name) => join(folder, name));

/**
 * Writes `out`/FOLDER/NAME.js for each FOLDER/NAME.ts that has changed, and removes what has no
 * source any more. Folders are relative to the repository's top; `out` is absolute. A file written has
 * the time of its source, so that one made from another source, older or newer, is not taken for it.
 */
export async function transpile(folders, out) {
  const sources = folders.flatMap(sourcesIn);
  const target = (source) => join(out, source.replace(/\.ts$/, '.js'));
  const stale = sources.filter((each) => changed(target(each)) !== changed(join(root, each)));
  const compiler = stale.length > 0 ? (await import('typescript')).default : undefined;
  for (const source of stale) {
    const { outputText } = compiler.transpileModule(readFileSync(join(root, source), 'utf8'), {
      compilerOptions: { target: 'es2022', module: 'esnext', verbatimModuleSyntax: true },
    });
    mkdirSync(dirname(target(source)), { recursive: true });
    // Renamed into place: two tools may do this at once.
    const temporary = `${target(source)}.${process.pid}`;
    const { mtime } = statSync(join(root, source));
    writeFileSync(temporary, outputText);
    utimesSync(temporary, mtime, mtime);
    renameSync(temporary, target(source));
  }
  const wanted = new Set(sources.map(target));
  for (const folder of folders.filter((each) => existsSync(join(out, each)))) {
    for (const name of readdirSync(join(out, folder), { recursive: true, encoding: 'utf8' })) {
      const path = join(out, folder, name);
      if (path.endsWith('.js') && !wanted.has(path)) rmSync(path);
    }
  }
}
