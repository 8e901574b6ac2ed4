/** `replpage promote`, `unprotect` and `detach`: one request on a named group. */
import type { Command } from 'commander';
import type { GroupStatus } from '../api/schema.js';
import { formatUs } from '../base/units.js';
import { contextOf, print, printJson, withCommonFlags, type CommonFlags } from './context.js';

export function addPromote(program: Command): void {
  withCommonFlags(program.command('promote'))
    .description('make the replica the running process now; the primary is stopped for good')
    .argument('<name>', 'of the group')
    .action(async (name: string, flags: CommonFlags) => {
      const context = contextOf(flags);
      const group = await context.client.act(name, 'promote');
      if (context.json) return printJson(group);
      print(`${name}: ${promotionText(group)}`);
    });
}

function promotionText({ promotion, hostPid }: GroupStatus): string {
  if (promotion === null) return `runs as process ${hostPid}`;
  const lost = promotion.exact ? 'nothing lost' : `from epoch ${promotion.epoch}`;
  const time = formatUs(promotion.decisionToRunUs);
  return `runs as process ${promotion.hostPid}, ${lost}, ${time} after the decision`;
}

export function addUnprotect(program: Command): void {
  withCommonFlags(program.command('unprotect'))
    .description('give up the replica; the process runs on')
    .argument('<name>', 'of the group')
    .action(async (name: string, flags: CommonFlags) => {
      const context = contextOf(flags);
      const group = await context.client.act(name, 'unprotect');
      if (context.json) return printJson(group);
      print(`${name}: no longer protected; process ${group.hostPid} is left as it is`);
    });
}

export function addDetach(program: Command): void {
  withCommonFlags(program.command('detach'))
    .description('let a debugger in: the process runs on untraced; protect attaches again')
    .argument('<name>', 'of the group')
    .action(async (name: string, flags: CommonFlags) => {
      const context = contextOf(flags);
      const group = await context.client.act(name, 'detach');
      if (context.json) return printJson(group);
      print(
        `${name}: detached; protect it again with: ` +
          `replpage protect ${group.hostPid} --name ${name}`,
      );
    });
}
