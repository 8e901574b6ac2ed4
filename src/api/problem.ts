/** Errors as they travel: problem+json one way, ReplicationError the other. */
import {
  describe,
  errorCodes,
  refusalsOf,
  ReplicationError,
  type ErrorCode,
} from '../base/errors.js';
import type { Problem } from './schema.js';

const statusOf: Readonly<Record<ErrorCode, number>> = {
  ERR_REFUSED: 422,
  ERR_USAGE: 400,
  ERR_BAD_REQUEST: 400,
  ERR_DENIED: 403,
  ERR_NO_DAEMON: 503,
  ERR_DAEMON_RUNS: 409,
  ERR_NO_PROCESS: 404,
  ERR_NO_GROUP: 404,
  ERR_GROUP_EXISTS: 409,
  ERR_PROTECTED_ALREADY: 409,
  ERR_STATE: 409,
  ERR_ENDED: 410,
  ERR_NO_REPLICA: 409,
  ERR_LIMIT: 429,
  ERR_FILES_CHANGED: 409,
  ERR_STORE: 409,
  ERR_NATIVE_MISSING: 500,
  ERR_NATIVE: 500,
  ERR_STATE_FILE: 500,
  ERR_FOLDER: 500,
  ERR_INTERRUPTED: 503,
  ERR_TIMEOUT: 504,
  ERR_NO_CLUSTER: 409,
  ERR_IN_CLUSTER: 409,
  ERR_JOIN: 409,
  ERR_NO_NODE: 404,
};

export function toProblem(error: unknown): Problem {
  const own = error instanceof ReplicationError ? error : undefined;
  const code = own?.code ?? 'ERR_NATIVE';
  return {
    type: 'about:blank',
    title: code,
    status: statusOf[code],
    code,
    detail: describe(error),
    ...(own?.advice === undefined ? {} : { advice: own.advice }),
    ...(own === undefined || own.refusals.length === 0 ? {} : { refusals: own.refusals }),
  };
}

export function fromProblem(value: unknown): ReplicationError {
  const fields = (typeof value === 'object' && value !== null ? value : {}) as Record<
    string,
    unknown
  >;
  const code = errorCodes.find((known) => known === fields['code']) ?? 'ERR_NATIVE';
  const detail = typeof fields['detail'] === 'string' ? fields['detail'] : 'no reason was given';
  const advice = typeof fields['advice'] === 'string' ? fields['advice'] : undefined;
  return new ReplicationError(code, detail, { advice, refusals: refusalsOf(value) });
}
