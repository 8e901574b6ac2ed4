/**
 * Debian packages, downloaded with apt but not installed. Names and versions come from apt's own
 * lists: packages that carry a version in their name are replaced by newer ones and vanish.
 */
import {
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs';
import { writeFileSync } from 'node:fs';
import path from 'node:path';
import { BedError, reasonOf, UnavailableError } from './bed-error.js';
import { cacheFolder, keyOf, requireRoom, usableFolder } from './cache.js';
import { command } from './command.js';

const quietly = { env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive', LC_ALL: 'C' } };
const listsFolder = '/var/lib/apt/lists';
const downloadMs = 900_000;
let updated = false;

/** A machine that never updated its lists knows no package at all. */
async function requireLists(): Promise<void> {
  if (existsSync(listsFolder) && readdirSync(listsFolder).some((n) => n.includes('Packages'))) {
    return;
  }
  await update();
}

async function update(): Promise<void> {
  updated = true;
  // Without that apt calls it a success when nothing was fetched.
  const strictly = ['-o', 'APT::Update::Error-Mode=any'];
  const options = { ...quietly, limitMs: downloadMs };
  await command('apt-get', ['-qq', ...strictly, 'update'], options).catch((error: unknown) => {
    const why = reasonOf(error);
    throw new UnavailableError(`package lists could not be updated (is there a network?): ${why}`);
  });
}

/**
 * Runs `body`, and once more with apt's lists updated when it finds that packages cannot be had: old
 * lists name packages that servers no longer have.
 */
export async function withFreshLists<T>(body: () => Promise<T>): Promise<T> {
  try {
    return await body();
  } catch (error) {
    if (!(error instanceof UnavailableError) || updated || process.getuid?.() !== 0) throw error;
    await update().catch(() => undefined);
    return body();
  }
}

/** apt takes seconds to answer: its answers hold until its lists are updated. */
async function ask(program: string, args: readonly string[], allowed: number[] = []) {
  await requireLists();
  const folder = usableFolder('answers');
  const key = keyOf([program, ...args, String(statSync(listsFolder).mtimeMs)]);
  const file = path.join(folder, key);
  if (existsSync(file)) return readFileSync(file, 'utf8');
  const answer = await command(program, args, { ...quietly, allowed }).catch((error: unknown) => {
    throw new UnavailableError(reasonOf(error));
  });
  requireRoom(cacheFolder());
  // Whole or not at all: it is believed until the lists are updated.
  writeFileSync(`${file}.${process.pid}`, answer);
  renameSync(`${file}.${process.pid}`, file);
  return answer;
}

/**
 * The package that a meta package stands for now: linux-image-6.12-amd64 gives
 * linux-image-6.12.117+deb12-amd64.
 * @throws BedError when there is no such package, with those that there are
 */
export async function resolveMeta(meta: string): Promise<string> {
  if (/^linux-image-\d+\.\d+\.\d+/.test(meta)) return meta;
  const depends = await ask('apt-cache', ['depends', '--important', meta], [100]);
  const found = /Depends: (linux-image-\S+)/.exec(depends)?.[1];
  if (found !== undefined) return resolveMeta(found);
  const known = await ask('apt-cache', ['pkgnames', 'linux-image-']);
  const names = known.split('\n').filter((name) => /^linux-image-([\d.]+-)?amd64$/.test(name));
  throw new UnavailableError(
    `no kernel package ${meta}; apt knows ${names.sort().join(', ') || 'none'}`,
  );
}

/** Where downloaded packages are kept. */
function archives(): string {
  usableFolder('debs', 'partial');
  return usableFolder('debs');
}

/** Options that make apt resolve as on a machine on which nothing is installed. */
function fromNothing(): string[] {
  const status = path.join(archives(), 'status');
  if (!existsSync(status)) writeFileSync(status, '');
  const settings = [
    `Dir::State::status=${status}`,
    'APT::Sandbox::User=root',
    'Acquire::Retries=3',
    // Another run downloads to the same place.
    'DPkg::Lock::Timeout=600',
  ];
  return settings.flatMap((each) => ['-o', each]);
}

/** The file names in the lines `'URL' NAME SIZE HASH`. */
function fileNames(uris: string): string[] {
  const names = uris.split('\n').map((line) => /^'\S+' (\S+\.deb) /.exec(line)?.[1]);
  return names.filter((name) => name !== undefined);
}

async function download(args: readonly string[], cwd: string): Promise<void> {
  requireRoom(cacheFolder());
  try {
    await command('apt-get', args, { ...quietly, cwd, limitMs: downloadMs });
  } catch (error) {
    throw new UnavailableError(
      `packages could not be downloaded (is there a network?): ${reasonOf(error)}`,
    );
  }
}

const installation = (packages: readonly string[]): string[] => [
  ...['install', '-qq', '-y', '--no-install-recommends', ...fromNothing()],
  ...packages,
];

/** The file names of the packages and of all they depend on, in apt's order of installation. */
export async function listAll(packages: readonly string[]): Promise<string[]> {
  const none = path.join(archives(), 'none');
  mkdirSync(path.join(none, 'partial'), { recursive: true });
  const listing = [
    '--print-uris',
    '-o',
    `Dir::Cache::archives=${none}`,
    '-o',
    'Debug::NoLocking=1',
  ];
  const names = fileNames(await ask('apt-get', [...installation(packages), ...listing]));
  if (names.length === 0) throw new BedError(`apt lists no files for ${packages.join(' ')}`);
  return names;
}

const dayMs = 24 * 3_600_000;

/** A run of another checkout may be unpacking it. */
function removeOld(file: string): void {
  const found = statSync(file, { throwIfNoEntry: false });
  if (found && Date.now() - found.mtimeMs > dayMs) rmSync(file, { force: true });
}

/** The files themselves. Those of earlier versions, which nobody wants any more, are removed. */
export async function fetchAll(packages: readonly string[]): Promise<string[]> {
  const folder = archives();
  const names = await listAll(packages);
  const files = names.map((name) => path.join(folder, name));
  if (!files.every((file) => existsSync(file))) {
    const into = ['--download-only', '-o', `Dir::Cache::archives=${folder}`];
    await download([...installation(packages), ...into], folder);
  }
  const stale = readdirSync(folder).filter((name) => /\.deb$/.test(name) && !names.includes(name));
  for (const name of stale) removeOld(path.join(folder, name));
  return files;
}

/** The file name of one package. */
export async function nameOfOne(name: string): Promise<string> {
  const [file] = fileNames(await ask('apt-get', ['download', '--print-uris', name]));
  if (file === undefined) throw new BedError(`apt lists no file for ${name}`);
  return file;
}

/** Downloads one package, without what it depends on, into a folder. */
export async function fetchOne(name: string, folder: string): Promise<string> {
  const sandbox = ['-o', 'APT::Sandbox::User=root', '-o', 'Acquire::Retries=3'];
  await download(['-qq', ...sandbox, 'download', name], folder);
  return path.join(folder, await nameOfOne(name));
}
