/** `replpage nodes [remove NAME]`. */
import type { Command } from 'commander';
import type { NodesReport, NodeStatus } from '../api/cluster-schema.js';
import { formatBytes, formatUs } from '../base/units.js';
import { contextOf, print, printJson, say, withCommonFlags, type CommonFlags } from './context.js';
import { formatTable } from './table.js';

export function addNodes(program: Command): void {
  const nodes = withCommonFlags(program.command('nodes'))
    .description('the nodes of the cluster: what they are, and whether they can be reached')
    .action(async (flags: CommonFlags) => {
      const context = contextOf(flags);
      const report = await context.client.nodes();
      if (context.json) return printJson(report);
      print(nodesText(report));
    });
  nodes
    .command('remove')
    .description('take a node out of the cluster for good: its certificate is refused from then on')
    .argument('<name>', 'of the node, or its id')
    .action(async (name: string, _flags: unknown, command: Command) => {
      const context = contextOf(command.optsWithGlobals<CommonFlags>());
      const report = await context.client.removeNode(name);
      if (context.json) return printJson(report);
      print(`node ${name} is removed`);
      say("it keeps the page store's key, and the CA's where it held it: see docs/operations.md");
    });
}

export function nodesText(report: NodesReport): string {
  const head = [
    ...['NODE', 'ADDRESS', 'ZONE', 'STATE', 'ROUND TRIP', 'FOR REPLICAS', 'GROUPS', 'VERSION'],
    'KERNEL',
  ];
  const rows = report.nodes.map((node) => [
    node.signs ? `${node.name} (CA)` : node.name,
    node.address,
    node.zone ?? '-',
    node.state,
    node.roundTripUs === null ? '-' : formatUs(node.roundTripUs),
    node.memoryForReplicasBytes === null ? '-' : formatBytes(node.memoryForReplicasBytes),
    node.groups === null ? '-' : String(node.groups),
    node.version ?? '-',
    node.kernel ?? '-',
  ]);
  const reasons = report.nodes.filter(({ reason }) => reason !== null).map(reasonText);
  const warnings = report.warnings.map((warning) => `warning: ${warning}`);
  return [formatTable([head, ...rows]), ...reasons, ...warnings].join('\n');
}

const reasonText = ({ name, state, reason }: NodeStatus): string =>
  `${name} is ${state}: ${reason}`;
