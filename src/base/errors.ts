/**
 * The errors that travel between parts, and to the user through the API. Callers switch on `code`,
 * never on text. A message says what was being done, to what and why it failed; `advice` what to do.
 */

/** One thing that cannot be replicated, found before anything was touched. */
export interface Refusal {
  readonly pid: number;
  /** The descriptor, address or attribute, as in "fd 7" or "0x7f00a0000000". */
  readonly object: string;
  readonly kind: string;
  readonly why: string;
}

/** Codes that replpage itself gives; anything else in `code` is an errno name from the system. */
export const errorCodes = [
  'ERR_REFUSED',
  'ERR_USAGE',
  'ERR_BAD_REQUEST',
  'ERR_DENIED',
  'ERR_NO_DAEMON',
  'ERR_DAEMON_RUNS',
  'ERR_NO_PROCESS',
  'ERR_NO_GROUP',
  'ERR_GROUP_EXISTS',
  'ERR_PROTECTED_ALREADY',
  'ERR_STATE',
  'ERR_ENDED',
  'ERR_NO_REPLICA',
  'ERR_LIMIT',
  'ERR_FILES_CHANGED',
  'ERR_STORE',
  'ERR_NATIVE_MISSING',
  'ERR_NATIVE',
  'ERR_STATE_FILE',
  'ERR_FOLDER',
  'ERR_INTERRUPTED',
  'ERR_TIMEOUT',
  'ERR_NO_CLUSTER',
  'ERR_IN_CLUSTER',
  'ERR_JOIN',
  'ERR_NO_NODE',
] as const;

export type ErrorCode = (typeof errorCodes)[number];

export interface ErrorDetails {
  readonly advice?: string | undefined;
  readonly refusals?: readonly Refusal[] | undefined;
  readonly cause?: unknown;
}

export class ReplicationError extends Error {
  override readonly name = 'ReplicationError';
  readonly code: ErrorCode;
  readonly advice: string | undefined;
  readonly refusals: readonly Refusal[];

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = code;
    this.advice = details.advice;
    this.refusals = details.refusals ?? [];
  }
}

/** An operation that the kernel refused, in the shape of Node's own system errors. */
export interface SystemError extends Error {
  readonly code: string;
  readonly errno?: number;
  readonly syscall?: string;
  readonly pid?: number;
  readonly address?: bigint | number;
  readonly path?: string;
}

export function isSystemError(error: unknown): error is SystemError {
  return error instanceof Error && 'code' in error && typeof error.code === 'string';
}

export function hasCode(error: unknown, code: string): boolean {
  return isSystemError(error) && error.code === code;
}

/** The whole chain of causes in one line. */
export function describe(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return error.cause === undefined ? error.message : `${error.message}: ${describe(error.cause)}`;
}

/** Native refusals carry their list as plain data; anything malformed in it is left out. */
export function refusalsOf(error: unknown): readonly Refusal[] {
  if (typeof error !== 'object' || error === null || !('refusals' in error)) return [];
  return Array.isArray(error.refusals) ? error.refusals.filter(isRefusal) : [];
}

function isRefusal(value: unknown): value is Refusal {
  if (typeof value !== 'object' || value === null) return false;
  const { pid, object, kind, why } = value as Record<string, unknown>;
  return typeof pid === 'number' && [object, kind, why].every((text) => typeof text === 'string');
}
