/** A command that asks the daemon one thing about a named group and tells its answer. */
import type { Command } from 'commander';
import type { ApiClient } from '../api/client.js';
import {
  contextOf,
  groupName,
  print,
  printJson,
  withCommonFlags,
  type CommonFlags,
  type Context,
} from './context.js';

export interface GroupCommand<Answer, Flags extends CommonFlags = CommonFlags> {
  readonly name: string;
  readonly description: string;
  /** Which groups it takes. */
  readonly group: string;
  /** Beside the common ones. */
  readonly options?: readonly (readonly [flags: string, description: string])[];
  readonly required?: readonly (readonly [flags: string, description: string])[];
  /** What is to be settled first. */
  before?(context: Context, name: string, flags: Flags): Promise<void>;
  ask(client: ApiClient, name: string, flags: Flags): Promise<Answer>;
  /** The answer in words; with --json it is printed as it is. */
  text(answer: Answer, name: string): string;
}

export function addGroupCommand<Answer, Flags extends CommonFlags = CommonFlags>(
  program: Command,
  command: GroupCommand<Answer, Flags>,
): void {
  const added = withCommonFlags(program.command(command.name));
  for (const [flags, description] of command.options ?? []) added.option(flags, description);
  for (const [flags, description] of command.required ?? []) {
    added.requiredOption(flags, description);
  }
  added
    .description(command.description)
    .argument('<name>', command.group)
    .action(async (name: string, flags: Flags) => {
      const context = contextOf(flags);
      await command.before?.(context, groupName(name), flags);
      const answer = await command.ask(context.client, groupName(name), flags);
      if (context.json) return printJson(answer);
      print(`${name}: ${command.text(answer, name)}`);
    });
}
