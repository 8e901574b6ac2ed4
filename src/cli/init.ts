/** `replpage init`, `token` and `join`: make a cluster, and take nodes in. */
import type { Command } from 'commander';
import { clusterDefaults } from '../api/cluster-schema.js';
import { ReplicationError } from '../base/errors.js';
import { formatMs, parseDurationMs, parseOption } from '../base/units.js';
import {
  contextOf,
  print,
  printJson,
  say,
  withCommonFlags,
  type CommonFlags,
  type Context,
} from './context.js';
import { ensureDaemon } from './start-daemon.js';

interface NodeFlags extends CommonFlags {
  readonly name?: string;
  readonly listen?: string;
  readonly zone?: string;
}

interface InitFlags extends NodeFlags {
  readonly certificateLife?: string;
  readonly recover?: string;
}

interface TokenFlags extends CommonFlags {
  readonly ttl?: string;
  readonly ca?: boolean;
}

const durationMs = (option: string, text: string | undefined): number | undefined =>
  text === undefined ? undefined : Math.round(parseOption(option, text, parseDurationMs));

function withNodeFlags(command: Command): Command {
  return withCommonFlags(command)
    .option('--name <node>', 'of this node (default: the name of the machine)')
    .option('--listen <host:port>', 'by which the others reach it (default port 7420)')
    .option('--zone <zone>', 'a label for what fails together, such as a rack');
}

const nodeOf = ({ name, listen, zone }: NodeFlags) => ({ name, listen, zone });

async function withDaemon(flags: CommonFlags): Promise<Context> {
  const context = contextOf(flags);
  const started = await ensureDaemon(context);
  if (started !== undefined && !context.json) say(`started a daemon (pid ${started})`);
  return context;
}

export function addInit(program: Command): void {
  withNodeFlags(program.command('init'))
    .description('make a cluster, with this node as its first')
    .option('--certificate-life <time>', 'of node certificates, which renew themselves', '2160h')
    .option('--recover <key>', 'of page stores that there are already, as init printed it')
    .addHelpText(
      'after',
      `
Prints the recovery key of the page store once: write it down and keep it elsewhere. Without it,
what is in the store cannot be read when all nodes are lost; whoever has it, can read all of it.`,
    )
    .action(async (flags: InitFlags) => {
      const certificateLifeMs = durationMs('--certificate-life', flags.certificateLife);
      const { recover } = flags;
      const context = await withDaemon(flags);
      const report = await context.client.initCluster({
        ...nodeOf(flags),
        certificateLifeMs,
        recover,
      });
      if (context.json) return printJson(report);
      print(
        `cluster ${report.cluster}: this is node ${report.node.name} at ${report.node.address}`,
      );
      print(`\nrecovery key of the page store, shown only now:\n\n  ${report.recoveryKey}\n`);
      print('to take another node in: replpage token');
    });
}

export function addToken(program: Command): void {
  withCommonFlags(program.command('token'))
    .description('make a one-time token with which another node joins')
    .option('--ttl <time>', 'how long it is good, 1s to 168h', formatTtl(clusterDefaults.ttlMs))
    .option('--ca', "the node is to hold the CA's key as well, and may then take nodes in itself")
    .action(async (flags: TokenFlags) => {
      const context = contextOf(flags);
      const request = { ttlMs: durationMs('--ttl', flags.ttl), signs: flags.ca === true };
      const report = await context.client.token(request);
      if (context.json) return printJson(report);
      print(`replpage join ${report.token}@${report.address}`);
      say(`run that on the other node, as root, within ${formatMs(report.ttlMs)}`);
    });
}

const formatTtl = (ms: number): string => `${ms / 60_000}min`;

export function addJoin(program: Command): void {
  withNodeFlags(program.command('join'))
    .description('enter a cluster, with a token that replpage token printed on a node of it')
    .argument('<token@host>', 'HOST or HOST:PORT is where the node that made the token listens')
    .action(async (text: string, flags: NodeFlags) => {
      const at = text.indexOf('@');
      if (at < 1 || at === text.length - 1) {
        throw new ReplicationError('ERR_USAGE', 'that is no token with a host', {
          advice: 'write TOKEN@HOST or TOKEN@HOST:PORT, as replpage token printed it',
        });
      }
      const context = await withDaemon(flags);
      const report = await context.client.joinCluster({
        ...{ token: text.slice(0, at), address: text.slice(at + 1) },
        ...nodeOf(flags),
      });
      if (context.json) return printJson(report);
      const { name, address } = report.node;
      print(
        `cluster ${report.cluster}: this is node ${name} at ${address}, one of ${report.nodes}`,
      );
    });
}
