/** The part of the local API that takes groups to other nodes; moves-schema.ts has the routes. */
import { ReplicationError } from '../base/errors.js';
import type { DrainReport, DrillReport } from './moves-schema.js';
import { namePattern, type GroupStatus } from './schema.js';
import type { Caller } from './server.js';

/** Each checks for itself what the caller may do. */
export interface MovesControl {
  move(caller: Caller, name: string, to: string): Promise<GroupStatus>;
  drain(caller: Caller, node: string): Promise<DrainReport>;
  /** undefined: where it would be promoted. */
  drill(caller: Caller, name: string, on: string | undefined): Promise<DrillReport>;
}

/** `path` is all but the version; undefined when it is none of these. */
export async function answerMove(
  moves: MovesControl,
  caller: Caller,
  path: readonly string[],
  query: URLSearchParams,
): Promise<object | undefined> {
  const [what, name = '', action] = path;
  if (path.length !== 3 || !namePattern.test(name)) return undefined;
  if (what === 'nodes' && action === 'drain') return moves.drain(caller, name);
  if (what !== 'groups') return undefined;
  if (action === 'drill') {
    const on = query.get('on') ?? undefined;
    if (on === undefined || namePattern.test(on)) return moves.drill(caller, name, on);
    throw new ReplicationError('ERR_BAD_REQUEST', '--on: the name of a node is wanted');
  }
  if (action !== 'move') return undefined;
  const to = query.get('to');
  if (to !== null && namePattern.test(to)) return moves.move(caller, name, to);
  throw new ReplicationError('ERR_BAD_REQUEST', 'to: the name of a node is wanted');
}
