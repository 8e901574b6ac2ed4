/** Two nodes that are a cluster, and redis as what is protected on them. */
import { existsSync } from 'node:fs';
import type { Test } from 'tap';
import { isGroupStatus, type GroupStatus, type StandbyStatus } from '../../src/api/schema.js';
import { sendSignal } from '../support/processes.js';
import { waitFor } from '../support/wait-for.js';
import { NamespaceNetwork, whyNoNamespaces, type NodeInNamespace } from './namespaces.js';

export const redis = '/usr/bin/redis-server';
/** Why these tests cannot run here; false when they can. */
export const whyNoPair: string | false =
  whyNoNamespaces() ?? (existsSync(redis) ? false : 'redis-server is not installed here');
/** Of redis. */
export const port = '6399';
export const limitMs = 60_000;

export interface Pair {
  readonly network: NamespaceNetwork;
  readonly a: NodeInNamespace;
  readonly b: NodeInNamespace;
}

/** `covers`: what b sees differently. */
export async function pair(t: Test, covers: Readonly<Record<string, string>> = {}): Promise<Pair> {
  const { network, nodes } = await cluster(t, ['a', 'b'], { b: covers });
  const [a, b] = nodes;
  if (a === undefined || b === undefined) throw new Error('there are no two nodes');
  return { network, a, b };
}

/** Nodes of one cluster, which the first has made. */
export async function cluster(
  t: Test,
  names: readonly string[],
  covers: Readonly<Record<string, Readonly<Record<string, string>>>> = {},
): Promise<{ readonly network: NamespaceNetwork; readonly nodes: readonly NodeInNamespace[] }> {
  const network = new NamespaceNetwork();
  const ends: (() => Promise<void>)[] = [];
  t.teardown(async () => {
    for (const end of ends) await end();
    await network.end();
  });
  const nodes = names.map((name) => network.node(name));
  ends.push(async () => {
    for (const node of nodes) await endGroups(node);
  });
  await Promise.all(nodes.map((node) => node.startDaemon(covers[node.name])));
  const [first, ...others] = nodes;
  if (first === undefined) throw new Error('a cluster has a node at least');
  const made = await first.type('init', '--name', first.name);
  if (made.status !== 0) throw new Error(made.stderr);
  for (const node of others) {
    const [, join = ''] = /^replpage join (\S+)$/m.exec((await first.type('token')).stdout) ?? [];
    const joined = await node.type('join', join, '--name', node.name);
    if (joined.status !== 0) throw new Error(joined.stderr);
  }
  for (const node of nodes) {
    for (const other of nodes) if (other !== node) await node.sees(other.name, 'up');
  }
  return { network, nodes };
}

/** Whatever still runs of what was promoted. */
async function endGroups(node: NodeInNamespace): Promise<void> {
  const groups = (await node.client.status().catch(() => undefined))?.groups ?? [];
  for (const group of groups.filter(isGroupStatus)) {
    await node.client.act(group.name, 'unprotect').catch(() => undefined);
    if (group.running) sendSignal(group.hostPid, 'SIGKILL');
  }
}

export const ask = (node: NodeInNamespace, ...args: string[]): string =>
  node.ask('redis-cli', '-p', port, ...args);

/** Gives its pid. */
export async function startRedis(
  t: Test,
  node: NodeInNamespace,
  program = redis,
  dir = '.',
): Promise<number> {
  const args = [
    '--port',
    port,
    '--save',
    '',
    '--appendonly',
    'no',
    '--bind',
    '0.0.0.0',
    '--protected-mode',
    'no',
    '--dir',
    dir,
  ];
  const child = node.start(program, ...args);
  const { pid = 0 } = child;
  t.teardown(() => void child.kill('SIGKILL'));
  await waitFor(() => ask(node, 'PING') === 'PONG', limitMs, 'redis does not answer');
  return pid;
}

export function groupOf(node: NodeInNamespace): Promise<GroupStatus> {
  return node.client.group('db');
}

export function sees(
  node: NodeInNamespace,
  what: (standby: StandbyStatus) => boolean,
  doing: string,
): Promise<StandbyStatus> {
  let seen: readonly StandbyStatus[] = [];
  return waitFor(
    async () => {
      seen = (await node.client.status()).standbys ?? [];
      return seen.find((one) => one.name === 'db' && what(one));
    },
    limitMs,
    () => `${doing}: ${JSON.stringify(seen)}; ${node.log}`,
  );
}

export async function protect({ a }: Pair, pid: number, ...more: readonly string[]): Promise<void> {
  const done = await a.type(
    'protect',
    String(pid),
    '--name',
    'db',
    '--to',
    'b',
    '--max-pause',
    '1s',
    ...more,
  );
  if (done.status !== 0) throw new Error(`${done.stderr} ${a.log}`);
}

/** In the replica for sure. */
export async function committed({ a, b }: Pair): Promise<void> {
  const { epoch } = await groupOf(a);
  await sees(b, (standby) => standby.epoch > epoch + 1, 'no more epochs are committed');
}

export async function runsOn(node: NodeInNamespace): Promise<GroupStatus> {
  await waitFor(
    () => ask(node, 'PING') === 'PONG',
    limitMs,
    () => `it does not run: ${node.log}`,
  );
  // It runs before its daemon hears of it.
  return waitFor(
    () => groupOf(node).catch(() => undefined),
    limitMs,
    () => `it has no group: ${node.log}`,
  );
}
