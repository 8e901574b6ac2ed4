/** `replpage promote`, `unprotect` and `detach`: one request on a named group. */
import type { Command } from 'commander';
import type { GroupStatus } from '../api/schema.js';
import { formatLoss, formatUs } from '../base/units.js';
import {
  contextOf,
  groupName,
  print,
  printJson,
  withCommonFlags,
  type CommonFlags,
} from './context.js';
import { protectCommand } from './protect-options.js';

export function addPromote(program: Command): void {
  withCommonFlags(program.command('promote'))
    .description('make the replica the running process now; the primary is stopped for good')
    .argument('<name>', 'of the group')
    .action(async (name: string, flags: CommonFlags) => {
      const context = contextOf(flags);
      const group = await context.client.act(groupName(name), 'promote');
      if (context.json) return printJson(group);
      print(`${name}: ${promotionText(group)}`);
    });
}

function promotionText({ promotion, hostPid }: GroupStatus): string {
  if (promotion === null) return `runs as process ${hostPid}`;
  const time = formatUs(promotion.decisionToRunUs);
  return `runs as process ${promotion.hostPid}, ${formatLoss(promotion)}, ${time} after the decision`;
}

export function addUnprotect(program: Command): void {
  withCommonFlags(program.command('unprotect'))
    .description('give up the replica; the process runs on')
    .argument('<name>', 'of the group')
    .action(async (name: string, flags: CommonFlags) => {
      const context = contextOf(flags);
      const group = await context.client.act(groupName(name), 'unprotect');
      if (context.json) return printJson(group);
      print(
        group.running
          ? `${name}: no longer protected; process ${group.hostPid} is left as it is`
          : `${name}: forgotten; its process ${group.hostPid} has ended before`,
      );
    });
}

export function addDetach(program: Command): void {
  withCommonFlags(program.command('detach'))
    .description('let a debugger in: the process runs on untraced; protect attaches again')
    .argument('<name>', 'of the group')
    .action(async (name: string, flags: CommonFlags) => {
      const context = contextOf(flags);
      const group = await context.client.act(groupName(name), 'detach');
      if (context.json) return printJson(group);
      print(
        `${name}: detached, process ${group.hostPid} runs on untraced; protect it again, with the ` +
          `options that it had, with:\n  replpage protect ${group.hostPid} --name ${name}\n` +
          `which is short for:\n  ${protectCommand(group)}`,
      );
    });
}
