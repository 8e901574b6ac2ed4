/** `replpage events [--follow]`: what happened, and why. */
import type { Command } from 'commander';
import type { EventRecord } from '../api/schema.js';
import {
  contextOf,
  interruptSignal,
  print,
  printJson,
  withCommonFlags,
  type CommonFlags,
} from './context.js';

interface EventFlags extends CommonFlags {
  readonly follow?: boolean;
}

export function addEvents(program: Command): void {
  withCommonFlags(program.command('events'))
    .description(
      'what happened to the groups since the daemon was started, and why; its log has what was before (--json: one object a line)',
    )
    .option('--follow', 'go on with new events until interrupted')
    .action(async (flags: EventFlags) => {
      const context = contextOf(flags);
      const signal = interruptSignal();
      const options = { after: 0, follow: flags.follow === true, signal };
      try {
        for await (const event of context.client.events(options)) {
          if (context.json) printJson(event);
          else print(eventText(event));
        }
      } catch (error) {
        if (!signal.aborted) throw error;
      }
    });
}

const eventText = ({ time, group, what, why }: EventRecord): string =>
  `${time}  ${group}  ${what}: ${why}`;
