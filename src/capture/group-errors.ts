/** What a user is told when a group cannot do what was asked. */
import { describe, hasCode, isSystemError, refusalsOf, ReplicationError } from '../base/errors.js';
import { inWords } from './death.js';
import type { Phase } from './group-state.js';

/** Of what was refused, in the reason of a state; `protect` itself tells all. */
const refusalsTold = 3;

export function reasonOf(error: unknown): string {
  const refused = refusalsOf(error).map(
    ({ pid, object, kind, why }) => `pid ${pid}, ${object}: ${kind}: ${why}`,
  );
  const more = refused.length > refusalsTold ? [`${refused.length - refusalsTold} more`] : [];
  return [inWords(describe(error)), ...refused.slice(0, refusalsTold), ...more].join('; ');
}

/** Native rejections in our own words; what is ours already stays as it is. */
export function asOwnError(error: unknown): ReplicationError {
  if (error instanceof ReplicationError) return error;
  const refusals = refusalsOf(error);
  if (hasCode(error, 'ERR_REFUSED')) {
    return new ReplicationError('ERR_REFUSED', describe(error), { refusals });
  }
  return new ReplicationError('ERR_NATIVE', describe(error), { cause: undefined });
}

export function asStartError(error: unknown, pid: number): ReplicationError {
  const doing = `cannot protect process ${pid}`;
  if (error instanceof ReplicationError) return error;
  if (hasCode(error, 'ESRCH')) {
    return new ReplicationError('ERR_NO_PROCESS', `${doing}: it is gone`);
  }
  if (hasCode(error, 'ERR_REFUSED')) {
    return new ReplicationError('ERR_REFUSED', `${doing}: it has what cannot be replicated`, {
      refusals: refusalsOf(error),
      advice: 'the process runs on untouched; remove what is named and protect again',
    });
  }
  if (hasCode(error, 'ERR_STORE')) {
    return new ReplicationError('ERR_STORE', `${doing}: ${describe(error)}`, {
      advice: 'the process runs on untouched; name another --store, or do without: --ram all',
    });
  }
  if (hasCode(error, 'EOPNOTSUPP') && /^track memory/.test(callOf(error))) {
    return new ReplicationError('ERR_REFUSED', `${doing}: ${describe(error)}`, {
      advice: '--tracker auto takes what this kernel has; replpage doctor shows it',
    });
  }
  // The operation is part of the message, where native code gave it.
  const call = describe(error).includes(callOf(error)) ? '' : ` (${callOf(error)})`;
  return new ReplicationError('ERR_NATIVE', `${doing}: ${describe(error)}${call}`);
}

const callOf = (error: unknown): string => (isSystemError(error) ? (error.syscall ?? '') : '');

/** Why there is no map of a replica's pages. */
export function notPaged(
  { name, ram }: { readonly name: string; readonly ram: string },
  state: Phase['kind'],
): ReplicationError {
  const why = ram === 'all' ? 'its replica holds everything (--ram all)' : `it is ${state}`;
  return new ReplicationError('ERR_STATE', `cannot inspect ${name}: ${why}`, {
    advice: 'it takes a group that is protected with --ram hot or a share',
  });
}

/** Why `doing` something makes no sense for a group that is over, and what would. */
export function overError(
  doing: string,
  group: { readonly name: string; readonly hostPid: number; readonly phase: Phase },
): ReplicationError {
  const { name, hostPid, phase } = group;
  const why = 'reason' in phase && phase.reason !== undefined ? ` (${phase.reason})` : '';
  if (phase.kind === 'detached' || phase.kind === 'unprotected') {
    const message = `cannot ${doing} ${name}: it is ${phase.kind}${why}, so it has no replica`;
    return new ReplicationError('ERR_NO_REPLICA', message, {
      advice: `protect it again: replpage protect ${hostPid} --name ${name}`,
    });
  }
  return new ReplicationError('ERR_ENDED', `cannot ${doing} ${name}: it has ended${why}`);
}
