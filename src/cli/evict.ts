/** `replpage evict NAME`: makes a replica as cold as it may be. */
import type { Command } from 'commander';
import { formatBytes, formatMs } from '../base/units.js';
import { addGroupCommand } from './group-command.js';

export function addEvict(program: Command): void {
  addGroupCommand(program, {
    name: 'evict',
    description: 'move what was not touched lately out of the RAM of a replica, now',
    group: 'of the group, protected with --ram',
    ask: (client, name) => client.evict(name),
    text: ({ group, evictedBytes, ms }) =>
      `${formatBytes(evictedBytes)} left the RAM of its replica in ${formatMs(ms)}: ` +
      `${formatBytes(group.memory.residentBytes)} in RAM, ` +
      `${formatBytes(group.memory.coldBytes)} in the page store`,
  });
}
