/** `replpage move NAME --to NODE` and `replpage drain NODE`: groups that go to other nodes. */
import type { Command } from 'commander';
import type { DrainReport } from '../api/moves-schema.js';
import type { GroupStatus } from '../api/schema.js';
import { contextOf, print, printJson, withCommonFlags, type CommonFlags } from './context.js';
import { addGroupCommand } from './group-command.js';

interface MoveFlags extends CommonFlags {
  readonly to: string;
}

export function addMove(program: Command): void {
  addGroupCommand<GroupStatus, MoveFlags>(program, {
    name: 'move',
    description:
      'stop a group here and run it on another node: nothing is lost, and connections to its ' +
      'service address live on, others are reset; where no replica is there, one is built first',
    group: 'of the group, which runs here',
    required: [['--to <node>', 'where it is to run']],
    ask: (client, name, { to }) => client.move(name, to),
    text: ({ reason }) => reason ?? 'it runs there',
  });
}

export function addDrain(program: Command, setStatus: (code: number) => void): void {
  withCommonFlags(program.command('drain'))
    .description(
      'move all groups that run here to other nodes: each to its replica, else to where most memory ' +
        'is free; replicas that are kept here stay',
    )
    .argument('<node>', 'its name; it is this one')
    .action(async (node: string, flags: CommonFlags) => {
      const context = contextOf(flags);
      const report = await context.client.drain(node);
      if (report.left.length > 0) setStatus(1);
      if (context.json) return printJson(report);
      print(drainText(report));
    });
}

export function drainText({ node, moved, left }: DrainReport): string {
  const lines = [
    ...moved.map(({ name, to }) => `${name}: runs on node ${to}`),
    ...left.map(({ name, why }) => `${name}: still here: ${why}`),
  ];
  return lines.length > 0 ? lines.join('\n') : `no group runs on node ${node}`;
}
