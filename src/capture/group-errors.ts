/** What a user is told when a group cannot do what was asked. */
import { describe, hasCode, isSystemError, refusalsOf, ReplicationError } from '../base/errors.js';
import { inWords } from './death.js';
import { isOver, type Phase } from './group-state.js';

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

/** Why a replica has no pages in the store. */
export function notPaged(
  doing: string,
  group: {
    readonly name: string;
    readonly ram: string;
    readonly hostPid: number;
    readonly phase: Phase;
  },
): ReplicationError {
  const { name, ram, hostPid, phase } = group;
  if (isOver(phase.kind)) return overError(doing, group);
  const cannot = `cannot ${doing} ${name}`;
  if (ram !== 'all') {
    return new ReplicationError('ERR_STATE', `${cannot}: it is ${phase.kind}`, {
      advice: `wait until replpage status ${name} shows it protected`,
    });
  }
  const message = `${cannot}: its replica holds everything (--ram all)`;
  return new ReplicationError('ERR_BAD_REQUEST', message, {
    advice: `replpage unprotect ${name}, then replpage protect ${hostPid} --name ${name} --ram hot`,
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

/** Throws why a group has nothing that could be promoted now. */
export function checkPromotable(group: {
  readonly name: string;
  readonly hostPid: number;
  readonly phase: Phase;
}): void {
  checkKept('promote', group);
}

/** While it is kept in step. Throws ERR_STATE and what overError() gives. */
export function checkKept(
  doing: string,
  group: { readonly name: string; readonly hostPid: number; readonly phase: Phase },
): void {
  const { kind } = group.phase;
  if (isOver(kind)) throw overError(doing, group);
  if (kind === 'protected' || kind === 'lagging') return;
  throw new ReplicationError('ERR_STATE', `cannot ${doing} ${group.name}: it is ${kind}`, {
    advice: 'wait until replpage status shows it as protected',
  });
}

/** Epochs in a row that fail outright, not just abandoned, before protection is given up. */
const epochErrorsMax = 3;
/** How long epochs may fail for what cannot be replicated before protection is given up. */
const refusedPatienceMs = 3000;

/** Whether epochs that fail mean the end of protection. What cannot be replicated may be held for a moment only, as a descriptor on its way. */
export const isLost = (error: unknown, errors: number, failingMs: number): boolean =>
  hasCode(error, 'ERR_REFUSED') ? failingMs >= refusedPatienceMs : errors >= epochErrorsMax;

export function overText(name: string, phase: Phase): string {
  if (phase.kind === 'removed') return `${name} was unprotected meanwhile; its process runs on`;
  return `${name} is ${phase.kind}${'reason' in phase ? `: ${phase.reason}` : ''}`;
}

/** Why there is no checkpoint; an earlier one is what it was. */
export function asCheckpointError(error: unknown, name: string): ReplicationError {
  const message = `cannot take a checkpoint of ${name}: ${describe(error)}`;
  if (hasCode(error, 'ERR_REFUSED')) {
    return new ReplicationError('ERR_REFUSED', `${message} and restored`, {
      refusals: refusalsOf(error),
      advice: 'the replica is as before; what is named is of this machine and this moment',
    });
  }
  if (hasCode(error, 'ERR_STORE')) {
    return new ReplicationError('ERR_STORE', message, {
      advice: /the limit of \d+ bytes/.test(message)
        ? 'raise --store-max of the daemon, or make room: replpage checkpoint --remove NAME'
        : 'the replica, and an earlier checkpoint, are as before',
    });
  }
  return new ReplicationError('ERR_STATE', message, {
    advice: 'it takes a group that is protected: see replpage status',
  });
}
