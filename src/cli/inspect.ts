/** `replpage inspect NAME`: where the pages of a group's replica are. */
import { writeFileSync } from 'node:fs';
import type { Command } from 'commander';
import { describe, ReplicationError } from '../base/errors.js';
import { givenPath } from '../base/paths.js';
import {
  contextOf,
  groupName,
  print,
  printJson,
  say,
  withCommonFlags,
  type CommonFlags,
} from './context.js';
import { drawInspection } from './inspect-svg.js';
import { formatInspection } from './inspect-text.js';

interface InspectFlags extends CommonFlags {
  readonly svg?: string;
}

export function addInspect(program: Command): void {
  withCommonFlags(program.command('inspect'))
    .description('map of the memory of a group: what is hot, warm, cold or absent in its replica')
    .argument('<name>', 'of the group, protected with --ram')
    .option('--svg <file>', 'write it as a picture too')
    .action(async (name: string, flags: InspectFlags) => {
      const context = contextOf(flags);
      const path = flags.svg === undefined ? undefined : givenPath('--svg', flags.svg);
      const processes = await context.client.pages(groupName(name));
      if (path !== undefined) writePicture(path, drawInspection(name, processes));
      if (context.json) return printJson({ group: name, processes });
      print(formatInspection(processes));
    });
}

function writePicture(path: string, picture: string): void {
  try {
    writeFileSync(path, picture);
  } catch (error) {
    throw new ReplicationError('ERR_FOLDER', `cannot write the picture: ${describe(error)}`, {
      advice: 'give --svg a file in a folder that is there and that you may write to',
    });
  }
  say(`the picture is in ${path}`);
}
