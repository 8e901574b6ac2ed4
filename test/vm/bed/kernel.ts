/** A stock Debian kernel: what QEMU boots, and the modules the nodes may want. */
import { closeSync, existsSync, mkdirSync, openSync, readdirSync, readFileSync } from 'node:fs';
import { readSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { BedError } from './bed-error.js';
import { cached, keyOf } from './cache.js';
import { command } from './command.js';
import { fetchOne, nameOfOne, resolveMeta, withFreshLists } from './packages.js';
import { makeSquashfs } from './squashfs.js';

export interface Kernel {
  /** As `uname -r` says. */
  readonly release: string;
  /** Uncompressed: saves a second or two of emulated decompression. */
  readonly vmlinux: string;
  /** A squashfs with usr/lib/modules. */
  readonly modules: string;
  /** Modules for the initial RAM disk, uncompressed, and their order of loading in `order`. */
  readonly early: string;
  readonly key: string;
}

/** The kernels of the matrix, oldest first, and the packages that stand for them. */
export const kernelPackages: Readonly<Record<string, string>> = {
  '6.1': 'linux-image-amd64',
  '6.12': 'linux-image-6.12-amd64',
};

/** Needed before the root file system is there. */
const earlyModules = 'virtio_pci virtio_console virtio_rng virtio_blk virtio_net overlay squashfs';

/** All that tests on a node may load by name; what these depend on comes along. */
const laterModules = `${earlyModules} 9p 9pnet_virtio ext4 xfs btrfs nfs nfsv3 nfsv4 nfsd lockd
  rpcsec_gss_krb5 nilfs2 loop brd zram nbd ublk_drv null_blk dm-mod dm-flakey dm-delay dm-era
  dm-log-writes dm-snapshot dm-thin-pool dm-crypt tun veth bridge dummy macvlan ipvlan sch_plug
  sch_netem sch_tbf sch_ingress cls_u32 act_mirred nf_tables nft_queue nft_ct nft_masq nft_nat
  nft_reject_inet nft_compat nfnetlink_queue xt_NFQUEUE ip_tables iptable_filter fuse cuse softdog
  vhost_net unix_diag tcp_diag inet_diag binfmt_misc`;

const compressions = [
  { magic: Buffer.from([0x28, 0xb5, 0x2f, 0xfd]), program: 'zstd' },
  { magic: Buffer.from([0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00]), program: 'xz' },
  { magic: Buffer.from([0x02, 0x21, 0x4c, 0x18]), program: 'lz4' },
  { magic: Buffer.from([0x1f, 0x8b, 0x08]), program: 'gzip' },
];
/** Decompressors complain about what follows the compressed part. */
const trailingGarbage = [1, 2];

function isElf(file: string): boolean {
  const head = Buffer.alloc(4);
  const fd = openSync(file, 'r');
  readSync(fd, head, 0, 4, 0);
  closeSync(fd);
  return head.equals(Buffer.from('\x7fELF', 'latin1'));
}

async function extractVmlinux(vmlinuz: string, out: string): Promise<void> {
  const image = readFileSync(vmlinuz);
  for (const { magic, program } of compressions) {
    for (let at = image.indexOf(magic); at >= 0; at = image.indexOf(magic, at + 1)) {
      const fd = openSync(out, 'w');
      try {
        const input = image.subarray(at);
        await command(program, ['-dcq'], { input, stdout: fd, allowed: trailingGarbage });
      } finally {
        closeSync(fd);
      }
      if (isElf(out)) return;
    }
  }
  throw new BedError(`no compressed kernel was found in ${vmlinuz}`);
}

/** Paths of module files in the order in which they must be loaded; unknown names are left out. */
async function withDependencies(tree: string, release: string, names: string): Promise<string[]> {
  const found = new Set<string>();
  for (const name of names.split(/\s+/)) {
    const flags = ['-d', tree, '-S', release, '--show-depends', '--ignore-install', name];
    // Status 1: this kernel has no such module, or has it built in.
    const text = await command('modprobe', flags, { allowed: [1] });
    for (const [, file] of text.matchAll(/^insmod (\S+)/gm)) if (file) found.add(file);
  }
  return [...found];
}

async function copyEarly(tree: string, release: string, folder: string): Promise<void> {
  mkdirSync(folder);
  const order: string[] = [];
  for (const file of await withDependencies(tree, release, earlyModules)) {
    const name = path.basename(file).replace(/\.xz$/, '');
    const fd = openSync(path.join(folder, name), 'w');
    await command(
      file.endsWith('.xz') ? 'xz' : 'cat',
      file.endsWith('.xz') ? ['-dc', file] : [file],
      {
        stdout: fd,
      },
    );
    closeSync(fd);
    order.push(name);
  }
  writeFileSync(path.join(folder, 'order'), `${order.join('\n')}\n`);
}

async function packModules(tree: string, release: string, folder: string): Promise<void> {
  const from = path.join(tree, 'lib/modules', release);
  const to = path.join(folder, 'usr/lib/modules', release);
  const files = await withDependencies(tree, release, laterModules);
  for (const file of files) {
    const copy = path.join(to, path.relative(from, file));
    mkdirSync(path.dirname(copy), { recursive: true });
    await command('cp', ['--preserve=timestamps', file, copy]);
  }
  for (const list of ['modules.builtin', 'modules.builtin.modinfo', 'modules.order']) {
    if (existsSync(path.join(from, list))) await command('cp', [path.join(from, list), to]);
  }
  await command('depmod', ['-b', path.join(folder, 'usr'), release]);
}

async function unpack(deb: string, folder: string): Promise<void> {
  const tree = path.join(folder, 'tree');
  await command('dpkg-deb', ['-x', deb, tree]);
  const [release] = readdirSync(path.join(tree, 'lib/modules'));
  if (release === undefined) throw new BedError(`${deb} has no modules`);
  await command('depmod', ['-b', tree, release]);
  await extractVmlinux(path.join(tree, 'boot', `vmlinuz-${release}`), path.join(folder, 'vmlinux'));
  await copyEarly(tree, release, path.join(folder, 'early'));
  const modules = path.join(folder, 'modules');
  await packModules(tree, release, modules);
  await makeSquashfs(modules, path.join(folder, 'modules.img'));
  writeFileSync(path.join(folder, 'release'), release);
  for (const rest of [tree, modules]) rmSync(rest, { recursive: true, force: true });
}

/** @param series "6.1" or "6.12", or the name of a Debian kernel package */
export async function prepareKernel(series: string): Promise<Kernel> {
  const meta = kernelPackages[series] ?? series;
  if (!/^linux-image-[a-z0-9]/.test(meta)) {
    const known = Object.keys(kernelPackages).join(', ');
    throw new BedError(`unknown kernel ${series}: ${known} or a package (linux-image-6.12-amd64)`);
  }
  return withFreshLists(async () => {
    const name = await resolveMeta(meta);
    const key = keyOf([await nameOfOne(name), earlyModules, laterModules, '1']);
    const folder = await cached('kernels', key, async (fresh) => {
      const deb = await fetchOne(name, fresh);
      await unpack(deb, fresh);
      rmSync(deb);
    });
    return kernelIn(folder, key);
  });
}

function kernelIn(folder: string, key: string): Kernel {
  return {
    release: readFileSync(path.join(folder, 'release'), 'utf8'),
    vmlinux: path.join(folder, 'vmlinux'),
    modules: path.join(folder, 'modules.img'),
    early: path.join(folder, 'early'),
    key,
  };
}
