/** `replpage checkpoint NAME` and `replpage restore STORE/NAME`. */
import { constants, closeSync, openSync, readFileSync } from 'node:fs';
import { basename, dirname, resolve } from 'node:path';
import type { Command } from 'commander';
import { namePattern } from '../api/schema.js';
import { describe, ReplicationError } from '../base/errors.js';
import { formatBytes, formatMs } from '../base/units.js';
import {
  contextOf,
  groupName,
  print,
  printJson,
  say,
  withCommonFlags,
  type CommonFlags,
} from './context.js';
import { ensureDaemon } from './start-daemon.js';

interface CheckpointFlags extends CommonFlags {
  readonly keep?: boolean;
  readonly remove?: boolean;
  readonly id?: string;
}

interface RestoreFlags extends CommonFlags {
  readonly key?: string;
  readonly name?: string;
  readonly id?: string;
  readonly files?: string;
}

const restoreHelp = `
It comes back as of the epoch that the checkpoint is of: what it did since is lost, connections are
reset, and it is refused when a file that it had open for writing has changed since (--files keep
takes files as they are). It runs at once; its memory comes as it is touched, the rest in the
background, and then it is protected again, with the options that it had.
That it runs on no other machine is yours to know.

  sudo replpage checkpoint web
  sudo replpage restore /var/lib/replpage/store/web
  sudo replpage restore /mnt/store/web --key web.key    # on another machine, with replpage key export`;

const checkpointHelp = `
The next checkpoint of a group takes the place of the one before, which stays until then, also when
the group has ended. Checkpoints count in the daemon's --store-max. One is in use while a process
that was restored from it, on this machine, has not read all of its memory.

  sudo replpage checkpoint web
  sudo replpage checkpoint --remove web
  sudo replpage checkpoint --remove /mnt/store/web`;

async function remove(path: string, flags: CheckpointFlags): Promise<void> {
  const context = contextOf(flags);
  const from = groupName(basename(path));
  const store = path === from ? undefined : dirname(resolve(path));
  const report = await context.client.removeCheckpoints({ store, from, id: flags.id });
  if (context.json) return printJson(report);
  const count = report.ids.length === 1 ? 'one checkpoint' : `${report.ids.length} checkpoints`;
  print(`${report.path}: ${count} removed, ${formatBytes(report.freedBytes)} freed`);
}

export function addCheckpoint(program: Command): void {
  withCommonFlags(program.command('checkpoint'))
    .description('complete the page store, so that the group can be restored from it alone')
    .argument('<name>', 'of the group; with --remove also STORE/NAME')
    .option('--keep', 'leave earlier checkpoints of the group where they are')
    .option('--remove', 'remove all checkpoints of that name instead, if none is in use')
    .option('--id <id>', 'remove this one alone')
    .addHelpText('after', checkpointHelp)
    .action(async (name: string, flags: CheckpointFlags) => {
      if (flags.remove === true) return remove(name, flags);
      if (flags.id !== undefined) throw new ReplicationError('ERR_USAGE', '--id is for --remove');
      const context = contextOf(flags);
      const report = await context.client.checkpoint(groupName(name), flags.keep === true);
      if (context.json) return printJson(report);
      print(
        `${name}: checkpoint ${report.id} of epoch ${report.epoch}: ` +
          `${formatBytes(report.writtenBytes)} written in ${formatMs(report.ms)}, ` +
          `${formatBytes(report.coldBytes)} were in the store`,
      );
      say(`restore it with: replpage restore ${report.path}`);
    });
}

export function addRestore(program: Command): void {
  withCommonFlags(program.command('restore'))
    .description('bring a group back from a checkpoint; starts a daemon if none runs')
    .argument('<path>', 'STORE/NAME, as replpage checkpoint says')
    .option('--key <file>', 'of the machine that wrote it (replpage key export); for root')
    .option('--name <name>', 'of the group (default: as before)')
    .option('--id <id>', 'of the checkpoint (default: the newest)')
    .option('--files <rule>', 'when files have changed: refuse or keep (default: as before)')
    .addHelpText('after', restoreHelp)
    .action(async (path: string, flags: RestoreFlags) => {
      const from = basename(path);
      if (!namePattern.test(from)) {
        throw new ReplicationError('ERR_USAGE', `"${path}" does not end with the name of a group`);
      }
      const files = fileRule(flags.files);
      const request = {
        store: dirname(resolve(path)),
        from,
        name: flags.name,
        id: flags.id,
        key: flags.key === undefined ? undefined : readKey(flags.key),
        files,
      };
      const context = contextOf(flags);
      const started = await ensureDaemon(context);
      if (started !== undefined && !context.json) say(`started a daemon (pid ${started})`);
      const report = await context.client.restore(request);
      if (context.json) return printJson(report);
      print(
        `${report.group.name}: runs as process ${report.group.hostPid}, as of epoch ` +
          `${report.epoch} (${report.taken}), after ${formatMs(report.ms)}`,
      );
    });
}

function fileRule(text: string | undefined): 'refuse' | 'keep' | undefined {
  if (text === undefined || text === 'refuse' || text === 'keep') return text;
  throw new ReplicationError('ERR_USAGE', `--files: "${text}" is neither refuse nor keep`);
}

/** With the caller's rights. */
function readKey(path: string): string {
  try {
    const file = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      return readFileSync(file, 'utf8').trim();
    } finally {
      closeSync(file);
    }
  } catch (error) {
    throw new ReplicationError('ERR_USAGE', `cannot read the key: ${describe(error)}`);
  }
}
