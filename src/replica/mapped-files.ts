/**
 * The files that a process tree has mapped: a replica maps its own machine's, so they must be the
 * same there. What is shared and written is data, of which only the path is compared.
 */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { pipeline } from 'node:stream/promises';
import type { MappedFile } from '../format/peer-messages.js';

/** Larger ones are compared by their path alone. */
const hashedBytesMax = 512 * 1024 * 1024;
const cachedMax = 4096;

/** Of a file as it was: its identity, size and time of change lead to its hash. */
const known = new Map<string, string>();

export async function mappedFiles(pids: readonly number[]): Promise<readonly MappedFile[]> {
  const hashed = new Map<string, boolean>();
  for (const pid of pids) {
    for (const { path, shared } of parseMaps(await readFile(`/proc/${pid}/maps`, 'utf8'))) {
      hashed.set(path, (hashed.get(path) ?? false) || !shared);
    }
  }
  const files: MappedFile[] = [];
  for (const [path, wanted] of [...hashed].sort(([one], [other]) => (one < other ? -1 : 1))) {
    files.push({ path, hash: wanted ? ((await hashOf(path)) ?? null) : null });
  }
  return files;
}

/** Why the files here are not those; undefined when they are. */
export async function whyNotTheSame(files: readonly MappedFile[]): Promise<string | undefined> {
  for (const { path, hash } of files) {
    const own = hash === null ? await exists(path) : await hashOf(path);
    if (own === undefined) return `${path}, which it has mapped, is missing here`;
    if (hash !== null && own !== hash) return `${path}, which it has mapped, differs here`;
  }
  return undefined;
}

export function parseMaps(
  text: string,
): readonly { readonly path: string; readonly shared: boolean }[] {
  return text.split('\n').flatMap((line) => {
    const match = /^\S+ (\S{4}) \S+ \S+ (\d+)\s+(\/.*)$/.exec(line);
    const [, rights = '', inode = '0', path = ''] = match ?? [];
    const named = inode !== '0' && !path.endsWith(' (deleted)') && !/^\/(dev|proc)\//.test(path);
    return named ? [{ path, shared: rights.endsWith('s') }] : [];
  });
}

async function exists(path: string): Promise<string | undefined> {
  return stat(path).then(
    () => '',
    () => undefined,
  );
}

/** undefined: it is missing; empty: too large. */
async function hashOf(path: string): Promise<string | undefined> {
  try {
    const { dev, ino, size, mtimeMs, ctimeMs } = await stat(path);
    if (size > hashedBytesMax) return '';
    const key = [dev, ino, size, mtimeMs, ctimeMs].join(':');
    const before = known.get(key);
    if (before !== undefined) return before;
    const sum = createHash('sha256');
    await pipeline(createReadStream(path), sum);
    const hash = sum.digest('base64');
    if (known.size >= cachedMax) known.clear();
    known.set(key, hash);
    return hash;
  } catch {
    return undefined;
  }
}
