/** What `promote --force` may lose, said before it is done, and asked about where somebody reads it. */
import { createInterface } from 'node:readline/promises';
import { isGroupStatus, type StandbyStatus, type StatusReport } from '../api/schema.js';
import { ReplicationError } from '../base/errors.js';
import { formatMs } from '../base/units.js';
import { say, type Context } from './context.js';

/** Throws ERR_INTERRUPTED when the answer is not yes. Without a terminal nobody is asked. */
export async function confirmForce(context: Context, name: string, yes: boolean): Promise<void> {
  const standby = standbyOf(await context.client.status(), name);
  if (standby === undefined) return;
  for (const line of lossOf(standby)) say(line);
  if (yes || context.json || !process.stdin.isTTY) return;
  const terminal = createInterface({ input: process.stdin, output: process.stderr });
  try {
    const answer = await terminal.question(`promote ${name} on this node? [y/N] `);
    if (/^y(es)?$/i.test(answer.trim())) return;
  } finally {
    terminal.close();
  }
  throw new ReplicationError('ERR_INTERRUPTED', `${name} is not promoted`);
}

/** A group that runs here itself loses nothing by its order. */
function standbyOf(
  { groups, standbys = [] }: StatusReport,
  name: string,
): StandbyStatus | undefined {
  const here = groups.filter(isGroupStatus).some((group) => group.name === name && group.running);
  return here ? undefined : standbys.find((standby) => standby.name === name);
}

export function lossOf({ name, node, epoch, lagMs, state }: StandbyStatus): readonly string[] {
  if (epoch === 0) return [];
  return [
    `${name}: epoch ${epoch} of node ${node}, committed ${formatMs(lagMs)} ago: what was done since is lost`,
    ...(state === 'standby' ? [`${name}: node ${node} still sends epochs: it runs there`] : []),
  ];
}
