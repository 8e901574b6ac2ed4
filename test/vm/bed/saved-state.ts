/** A node that has booted and has no name yet, kept as a file: the others start from it in a second. */
import path from 'node:path';
import { BedError } from './bed-error.js';
import { cached, fingerprint, keyOf } from './cache.js';
import { command } from './command.js';
import type { VmNode } from './node.js';
import { commandLine, filesOf, program, type Machine } from './qemu.js';
import { until } from './node.js';
import { patiently } from './patience.js';

const migrationMs = patiently(60_000);

/** What QEMU and the guest must agree on; the project's disk has one size whatever is in it. */
async function keyFor(machine: Machine): Promise<string> {
  const version = await command(program, ['--version']);
  const { project, ...rest } = machine;
  const files = [machine.vmlinux, machine.initramfs, machine.system, machine.modules];
  const shape = commandLine({ ...rest, project: path.basename(project) }, filesOf('', 1));
  return keyOf([version, shape.join(' '), ...files.map(fingerprint)]);
}

async function save(node: VmNode, file: string): Promise<void> {
  await node.qmp(async (qmp) => {
    await qmp.execute('stop');
    await qmp.execute('migrate-set-parameters', { 'max-bandwidth': 2 ** 40 });
    await qmp.execute('migrate', { uri: `exec:cat > '${file.replaceAll("'", "'\\''")}'` });
    await until(
      async () => {
        const { status } = await qmp.execute<{ status: string }>('query-migrate');
        if (status === 'failed') throw new BedError(`${node.name} cannot be saved`);
        return status === 'completed';
      },
      migrationMs,
      `${node.name} is not saved`,
    );
  });
}

/**
 * The saved state for such machines; where there is none, `boot` gives a node that has just booted,
 * which is crashed afterwards.
 */
export async function prepareSavedState(
  machine: Machine,
  boot: () => Promise<VmNode>,
): Promise<string> {
  const folder = await cached('states', await keyFor(machine), async (fresh) => {
    const node = await boot();
    try {
      await node.sh('sync');
      node.release();
      await save(node, path.join(fresh, 'state'));
    } finally {
      await node.crash();
    }
  });
  return path.join(folder, 'state');
}

/** A node that was started from a saved state runs once all of it has been read. */
export async function resume(node: VmNode): Promise<void> {
  await node.qmp(async (qmp) => {
    await until(
      async () => {
        if (!node.running) throw new BedError(`${node.name} ended: ${node.lastWords()}`);
        const { status } = await qmp.execute<{ status: string }>('query-status');
        return status !== 'inmigrate';
      },
      migrationMs,
      `${node.name} does not take up its saved state`,
    );
    await qmp.execute('cont');
  });
}
