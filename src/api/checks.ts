/** Requests of the local API, checked field by field. */
import { ReplicationError } from '../base/errors.js';

const pathLengthMax = 4096;

export type Check<T> = (value: unknown) => value is T;
export const isText =
  (lengthMax: number): Check<string> =>
  (value): value is string =>
    typeof value === 'string' &&
    value.length > 0 &&
    value.length <= lengthMax &&
    !value.includes('\0');
export const isBetween =
  (low: number, high: number): Check<number> =>
  (value): value is number =>
    typeof value === 'number' && value >= low && value <= high;
export const isInteger =
  (low: number, high: number): Check<number> =>
  (value): value is number =>
    isBetween(low, high)(value) && Number.isInteger(value);
export const isOneOf =
  <T extends string>(...allowed: readonly T[]): Check<T> =>
  (value): value is T =>
    allowed.some((one) => one === value);
export const isAbsolutePath: Check<string> = (value): value is string =>
  isText(pathLengthMax)(value) && value.startsWith('/');

/** Every key that a request may have, what it must be, and the words for that. */
export type Fields<Request> = {
  readonly [K in keyof Required<Request>]: readonly [Check<Request[K]>, string];
};

/** Throws ERR_BAD_REQUEST that names the field, as `nameOf` does. */
export function checkFields<Request extends object>(
  value: unknown,
  fields: Fields<Request>,
  needed: readonly (keyof Request & string)[],
  nameOf: (field: keyof Request & string) => string = (field) => field,
): Request {
  const bad = (message: string): Error => new ReplicationError('ERR_BAD_REQUEST', message);
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw bad('the request is not an object');
  }
  const request = value as Partial<Request>;
  for (const field of needed) if (request[field] === undefined) throw bad(`${field} is missing`);
  for (const [key, given] of Object.entries(request)) {
    if (!Object.hasOwn(fields, key)) throw bad(`${key} is not known here`);
    const field = key as keyof Request & string;
    const [check, words] = fields[field];
    if (given !== undefined && !check(given)) throw bad(`${nameOf(field)} must be ${words}`);
  }
  return request as Request;
}
