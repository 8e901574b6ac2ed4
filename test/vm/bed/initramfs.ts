/** The initial RAM disk: busybox, the modules that lead to the root file system, and init.sh. */
import { chmodSync, copyFileSync, cpSync, mkdirSync, readFileSync, symlinkSync } from 'node:fs';
import path from 'node:path';
import { cached, fingerprint, keyOf } from './cache.js';
import { command } from './command.js';
import { guestFolder } from './images.js';
import type { Kernel } from './kernel.js';

const applets = `sh mount umount insmod mkdir ln cat echo ls switch_root sleep dmesg tail
  poweroff`.split(/\s+/);

async function make(kernel: Kernel, busybox: string, folder: string): Promise<void> {
  const tree = path.join(folder, 'tree');
  for (const name of ['bin', 'proc', 'sys', 'dev', 'system', 'modules', 'memory', 'root']) {
    mkdirSync(path.join(tree, name), { recursive: true });
  }
  copyFileSync(busybox, path.join(tree, 'bin/busybox'));
  for (const applet of applets) symlinkSync('busybox', path.join(tree, 'bin', applet));
  cpSync(kernel.early, path.join(tree, 'early'), { recursive: true });
  copyFileSync(path.join(guestFolder, 'init.sh'), path.join(tree, 'init'));
  chmodSync(path.join(tree, 'init'), 0o755);
  const pack = 'cd "$1" && find . | cpio -o -H newc --quiet -R 0:0 | gzip -1 >"$2"';
  const out = path.join(folder, 'initramfs');
  await command('/bin/bash', ['-o', 'pipefail', '-c', pack, 'pack', tree, out]);
  await command('rm', ['-r', tree]);
}

export async function prepareInitramfs(kernel: Kernel): Promise<string> {
  const busybox = (await command('/bin/sh', ['-c', 'command -v busybox'])).trim();
  const init = readFileSync(path.join(guestFolder, 'init.sh'));
  const key = keyOf([kernel.key, init, fingerprint(busybox), applets.join(), '1']);
  const folder = await cached('initramfs', key, (fresh) => make(kernel, busybox, fresh));
  return path.join(folder, 'initramfs');
}
