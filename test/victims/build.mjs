// Builds every victim into test/victims/build/, those that are older than their sources only.
// Run by hand: node test/victims/build.mjs. Imported by the tests: buildVictims().
import { execFile } from 'node:child_process';
import { mkdir, readdir, stat } from 'node:fs/promises';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { promisify } from 'node:util';

const run = promisify(execFile);
const flags = ['-std=gnu11', '-D_GNU_SOURCE', '-O1', '-g', '-Wall', '-Wextra', '-Werror'];
// A 32-bit program needs no 32-bit C library when it brings its own entry point.
const special = { thirty_two_bit: ['-m32', '-nostdlib', '-static', '-fno-pie', '-no-pie'] };

async function mtime(file) {
  try {
    return (await stat(file)).mtimeMs;
  } catch {
    return 0;
  }
}

/**
 * Compiles what has changed. Several test processes may do so at once: each compiles into a file
 * of its own and renames it.
 * @param {string} directory where the sources are
 * @returns {Promise<string>} the directory that holds the programs
 */
export async function buildVictims(directory) {
  const output = path.join(directory, 'build');
  await mkdir(output, { recursive: true });
  const names = await readdir(directory);
  const headers = names.filter((name) => name.endsWith('.h'));
  const newest = Math.max(
    ...(await Promise.all(headers.map((h) => mtime(path.join(directory, h))))),
  );
  for (const name of names.filter((each) => each.endsWith('.c'))) {
    const source = path.join(directory, name);
    const program = path.join(output, name.slice(0, -2));
    if ((await mtime(program)) > Math.max(newest, await mtime(source))) continue;
    const temporary = `${program}.${process.pid}`;
    const extra = special[name.slice(0, -2)] ?? ['-pthread', '-lm'];
    await run('gcc', [...flags, source, ...extra, '-o', temporary]);
    await run('mv', [temporary, program]);
  }
  return output;
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  console.log(await buildVictims(import.meta.dirname));
}
