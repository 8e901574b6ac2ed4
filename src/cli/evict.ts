/** `replpage evict NAME`: makes a replica as cold as it may be. */
import type { Command } from 'commander';
import { formatBytes, formatMs } from '../base/units.js';
import {
  contextOf,
  groupName,
  print,
  printJson,
  withCommonFlags,
  type CommonFlags,
} from './context.js';

export function addEvict(program: Command): void {
  withCommonFlags(program.command('evict'))
    .description('move what was not touched lately out of the RAM of a replica, now')
    .argument('<name>', 'of the group, protected with --ram')
    .action(async (name: string, flags: CommonFlags) => {
      const context = contextOf(flags);
      const report = await context.client.evict(groupName(name));
      if (context.json) return printJson(report);
      const { residentBytes, coldBytes } = report.group.memory;
      print(
        `${name}: ${formatBytes(report.evictedBytes)} left the RAM of its replica in ` +
          `${formatMs(report.ms)}: ${formatBytes(residentBytes)} in RAM, ` +
          `${formatBytes(coldBytes)} in the page store`,
      );
    });
}
