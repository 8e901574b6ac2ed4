/** `replpage promote`, `unprotect` and `detach`: one request on a named group. */
import type { Command } from 'commander';
import type { GroupStatus } from '../api/schema.js';
import { formatLoss, formatUs } from '../base/units.js';
import { confirmForce } from './confirm-force.js';
import type { CommonFlags } from './context.js';
import { addGroupCommand } from './group-command.js';
import { protectCommand } from './protect-options.js';

interface PromoteFlags extends CommonFlags {
  readonly to?: string;
  readonly force?: boolean;
  readonly yes?: boolean;
}

export function addPromote(program: Command): void {
  addGroupCommand<GroupStatus, PromoteFlags>(program, {
    name: 'promote',
    description: 'make the replica the running process now; the primary is stopped for good',
    group: 'of the group',
    options: [
      ['--to <node>', 'where it is to run; the node of its replica'],
      [
        '--force',
        'though it may run elsewhere, or files have changed: says what is lost, and asks',
      ],
      ['--yes', 'with --force: does not ask; nor is anybody asked without a terminal'],
    ],
    before: async (context, name, { force, yes }) => {
      if (force === true) await confirmForce(context, name, yes === true);
    },
    ask: (client, name, { to, force }) => client.promote(name, { to, force: force === true }),
    text: promotionText,
  });
}

function promotionText({ promotion, hostPid, state, reason }: GroupStatus): string {
  if (state === 'ended' && reason !== null) return reason;
  if (promotion === null) return `runs as process ${hostPid}`;
  const time = formatUs(promotion.decisionToRunUs);
  return `runs as process ${promotion.hostPid}, ${formatLoss(promotion)}, ${time} after the decision`;
}

export function addUnprotect(program: Command): void {
  addGroupCommand(program, {
    name: 'unprotect',
    description: 'give up the replica; the process runs on',
    group: 'of the group',
    ask: (client, name) => client.act(name, 'unprotect'),
    text: ({ running, hostPid, vip }) => {
      const address =
        vip === null || vip.wasThere
          ? ''
          : `; ${vip.address} is no address of this machine any more`;
      return running
        ? `no longer protected; process ${hostPid} is left as it is${address}`
        : `forgotten; its process ${hostPid} has ended before`;
    },
  });
}

export function addDetach(program: Command): void {
  addGroupCommand(program, {
    name: 'detach',
    description: 'let a debugger in: the process runs on untraced; protect attaches again',
    group: 'of the group',
    ask: (client, name) => client.act(name, 'detach'),
    text: (group, name) =>
      `detached, process ${group.hostPid} runs on untraced; protect it again, with the ` +
      `options that it had, with:\n  replpage protect ${group.hostPid} --name ${name}\n` +
      `which is short for:\n  ${protectCommand(group)}`,
  });
}
