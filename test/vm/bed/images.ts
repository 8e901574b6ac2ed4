/** The disks that all nodes share, read-only: a small Debian system, and the built project. */
import { chmodSync, copyFileSync, cpSync, existsSync, mkdirSync, readdirSync } from 'node:fs';
import { readFileSync, rmSync, statSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { root } from '../../support/repository.js';
import { buildTools, buildVictims } from '../../support/victim.js';
import { BedError } from './bed-error.js';
import { cached, fingerprint, keyOf } from './cache.js';
import { command } from './command.js';
import { fetchAll, listAll, withFreshLists } from './packages.js';
import { makeSquashfs } from './squashfs.js';

export const guestFolder = path.join(root, 'test/vm/guest');

/** What nodes have installed, with all that these depend on. No maintainer script is run. */
const packages = `base-files base-passwd bash coreutils dash findutils grep sed mawk hostname
  util-linux mount procps iproute2 iputils-ping kmod psmisc e2fsprogs netbase nfs-kernel-server
  nfs-common nilfs-tools redis-server redis-tools memcached nginx-light python3 sqlite3 libstdc++6
  libc-bin tar gzip nftables strace busybox-static`.split(/\s+/);

const left = ['doc', 'man', 'locale', 'info', 'lintian', 'bug', 'perl', 'perl5', 'zoneinfo'];
/** Accounts that Debian's maintainer scripts would have made. */
const accounts = ['_rpc:x:998:65534', 'statd:x:997:65534', 'redis:x:996:65534'];

async function unpackAll(debs: readonly string[], tree: string): Promise<void> {
  for (const folder of ['bin', 'sbin', 'lib', 'lib64']) {
    mkdirSync(path.join(tree, 'usr', folder), { recursive: true });
    symlinkSync(`usr/${folder}`, path.join(tree, folder));
  }
  const without = left.map((name) => `--exclude=./usr/share/${name}`).join(' ');
  // Older packages have files in /bin and /lib: the links above must stay.
  const script = `set -e; tree=$1; shift; for deb in "$@"; do dpkg-deb --fsys-tarfile "$deb" |
    tar -x --keep-directory-symlink --no-same-owner ${without} -C "$tree"; done`;
  await command('/bin/bash', ['-o', 'pipefail', '-c', script, 'unpack', tree, ...debs]);
}

function completeSystem(tree: string): void {
  const at = (...names: string[]): string => path.join(tree, ...names);
  for (const name of [
    'proc',
    'sys',
    'dev',
    'run',
    'tmp',
    'root',
    'vm',
    'srv',
    'mnt',
    'opt/replpage',
  ]) {
    mkdirSync(at(name), { recursive: true });
  }
  const master = (name: string): string => readFileSync(at('usr/share/base-passwd', name), 'utf8');
  const more = accounts.map((account) => `${account}::/:/usr/sbin/nologin\n`).join('');
  writeFileSync(at('etc/passwd'), `${master('passwd.master')}${more}`.replaceAll(':*:', ':x:'));
  writeFileSync(at('etc/group'), master('group.master').replaceAll(':*:', ':x:'));
  if (!existsSync(at('usr/bin/awk'))) symlinkSync('mawk', at('usr/bin/awk'));
  symlinkSync('/proc/self/mounts', at('etc/mtab'));
  writeFileSync(at('etc/fstab'), '');
  copyFileSync(process.execPath, at('usr/bin/node'));
  for (const name of ['start.sh', 'become.sh']) {
    copyFileSync(path.join(guestFolder, name), at('vm', name));
    chmodSync(at('vm', name), 0o755);
  }
}

async function makeSystem(debs: readonly string[], folder: string): Promise<void> {
  const tree = path.join(folder, 'tree');
  mkdirSync(tree);
  await unpackAll(debs, tree);
  completeSystem(tree);
  const source = path.join(guestFolder, 'agent.c');
  await command('gcc', ['-std=gnu11', '-O1', '-static', source, '-o', path.join(tree, 'vm/agent')]);
  await command('ldconfig', ['-r', tree]).catch(() => undefined);
  await makeSquashfs(tree, path.join(folder, 'system.img'));
  rmSync(tree, { recursive: true, force: true });
}

/** The system image: the same for all kernels. */
export async function prepareSystem(): Promise<string> {
  return withFreshLists(makeOrFindSystem);
}

async function makeOrFindSystem(): Promise<string> {
  const guest = ['start.sh', 'become.sh', 'agent.c'].map((n) =>
    readFileSync(path.join(guestFolder, n)),
  );
  const names = [...(await listAll(packages))].sort();
  const key = keyOf([...names, ...guest, fingerprint(process.execPath), '2']);
  const folder = await cached('systems', key, async (fresh) =>
    makeSystem(await fetchAll(packages), fresh),
  );
  return path.join(folder, 'system.img');
}

/** Packages that only tools of the developer's machine need. */
const notInside = /^(typescript|tshy|@typescript\/.*|@types\/.*|@tapjs\/run|ink|esbuild)$/;

/** The node modules that the project and its tests load, with all that these depend on. */
function modulesInside(): string[] {
  const own = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8')) as {
    dependencies: Record<string, string>;
  };
  const found = new Set<string>();
  const add = (name: string): void => {
    const file = path.join(root, 'node_modules', name, 'package.json');
    if (found.has(name) || notInside.test(name) || !existsSync(file)) return;
    found.add(name);
    const { dependencies, peerDependencies } = JSON.parse(readFileSync(file, 'utf8')) as {
      dependencies?: Record<string, string>;
      peerDependencies?: Record<string, string>;
    };
    for (const each of Object.keys({ ...dependencies, ...peerDependencies })) add(each);
  };
  for (const name of ['tap', ...Object.keys(own.dependencies)]) add(name);
  return [...found].sort();
}

const builtFolder = path.join(root, 'build/Release');

/** The programs that were built, and the addon. */
function builtPrograms(): string[] {
  const names = existsSync(builtFolder) ? readdirSync(builtFolder) : [];
  return names.filter((name) => /^(replpage|core_test)/.test(name)).sort();
}

function filesBelow(folder: string): string[] {
  return readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .map((name) => path.join(folder, name))
    .filter((file) => statSync(file).isFile());
}

/** The tests as JavaScript, made on the host: the nodes have no compiler. */
async function transpileTests(out: string): Promise<void> {
  const script = pathToFileURL(path.join(root, 'scripts/transpile.mjs')).href;
  const { transpile } = (await import(script)) as {
    transpile: (folders: readonly string[], out: string) => Promise<void>;
  };
  await transpile(['test/e2e', 'test/support', 'src/api', 'src/base', 'src/cli'], out);
}

async function makeProject(folder: string, tests: string): Promise<void> {
  const tree = path.join(folder, 'tree');
  mkdirSync(path.join(tree, 'build/Release'), { recursive: true });
  const copy = (name: string): void =>
    cpSync(path.join(root, name), path.join(tree, name), {
      recursive: true,
      preserveTimestamps: true,
    });
  for (const name of ['package.json', 'binding.gyp', 'dist', 'test/victims', 'test/support'])
    copy(name);
  for (const name of builtPrograms()) {
    const into = path.join(tree, 'build/Release', name);
    await command('strip', ['-g', '-o', into, path.join(builtFolder, name)]);
  }
  for (const name of modulesInside()) copy(`node_modules/${name}`);
  cpSync(tests, tree, { recursive: true });
  // Whole seconds only are kept of a file's time, and a program must be newer than its source.
  for (const sources of ['test/victims', 'test/support/tools']) {
    const made = filesBelow(path.join(tree, sources, 'build'));
    if (made.length > 0) await command('touch', made);
  }
  const useless = ['-wildcards', '-e', '... *.d.ts', '... *.map', '... *.md', '... *.d.mts'];
  await makeSquashfs(tree, path.join(folder, 'project.img'), ...useless);
  rmSync(tree, { recursive: true, force: true });
}

/** Of one size whatever is in it: a saved state was taken with a disk of this size. */
const projectBytes = 256 << 20;

/** @throws BedError when the project has not been built */
export async function prepareProject(): Promise<string> {
  const built = builtPrograms().map((name) => path.join(builtFolder, name));
  const needed = [path.join(builtFolder, 'replpage.node'), path.join(root, 'dist/cli/main.js')];
  const missing = needed.find((each) => !existsSync(each));
  if (missing !== undefined) throw new BedError(`${missing} is missing: npm run build first`);
  const victims = await buildVictims();
  const tools = await buildTools();
  const tests = path.join(root, 'build/vm/inside');
  await transpileTests(tests);
  const files = [path.join(root, 'dist'), victims, tools, tests].flatMap(filesBelow);
  const sources = [path.join(root, 'test/victims'), path.join(root, 'test/support')].flatMap(
    filesBelow,
  );
  const lock = readFileSync(path.join(root, 'package-lock.json'));
  const modules = modulesInside().join();
  const key = keyOf([...[...built, ...files, ...sources].sort().map(fingerprint), lock, modules]);
  const folder = await cached('projects', key, async (fresh) => {
    await makeProject(fresh, tests);
    const image = path.join(fresh, 'project.img');
    const { size } = statSync(image);
    if (size > projectBytes) throw new BedError(`the project takes ${size} bytes packed`);
    truncateSync(image, projectBytes);
  });
  return path.join(folder, 'project.img');
}
