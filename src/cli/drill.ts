/** `replpage drill NAME`: proves that a replica would run, without touching the service. */
import type { Command } from 'commander';
import type { DrillReport } from '../api/moves-schema.js';
import { formatMs, formatUs } from '../base/units.js';
import {
  contextOf,
  groupName,
  print,
  printJson,
  withCommonFlags,
  type CommonFlags,
} from './context.js';

interface DrillFlags extends CommonFlags {
  readonly on?: string;
}

export function addDrill(program: Command, setStatus: (code: number) => void): void {
  withCommonFlags(program.command('drill'))
    .description(
      'prove that a replica of a group would run: one more is made, checked as any other, brought to an ' +
        'epoch and run up to its first system calls, which are not executed; it reaches no file and no ' +
        'network, and the group goes on as before',
    )
    .argument('<name>', 'of the group, which runs here')
    .option(
      '--on <node>',
      'a node, or self for this machine; by default where it would be promoted',
    )
    .action(async (name: string, flags: DrillFlags) => {
      const context = contextOf(flags);
      const report = await context.client.drill(groupName(name), flags.on);
      if (report.problem !== null) setStatus(1);
      if (context.json) return printJson(report);
      print(`${name}: ${drillText(report)}`);
    });
}

export function drillText(report: DrillReport): string {
  const { node, epoch, problem, promoteUs, comparedPages, threads, calls, ms } = report;
  if (problem !== null) return `would not run on ${node}: ${problem}`;
  const still = threads - calls;
  const went =
    `${calls} of ${threads} threads went on to a system call` +
    (still > 0 ? `, ${still} computed on` : '');
  return (
    `would run on ${node} from epoch ${epoch}, ${formatUs(promoteUs)} after the order; ${went}; ` +
    (comparedPages > 0 ? `${comparedPages} pages of its replica there are the primary's; ` : '') +
    `the drill took ${formatMs(ms)}`
  );
}
