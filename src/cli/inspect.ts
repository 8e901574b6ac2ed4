/** `replpage inspect NAME`: where the pages of a group's replica are. */
import { writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import type { Command } from 'commander';
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
      const processes = await context.client.pages(groupName(name));
      if (flags.svg !== undefined) {
        const path = resolve(flags.svg);
        writeFileSync(path, drawInspection(name, processes));
        say(`the picture is in ${path}`);
      }
      if (context.json) return printJson({ group: name, processes });
      print(formatInspection(processes));
    });
}
