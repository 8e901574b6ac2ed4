/**
 * What came from outside, made into what the types promise. A shape takes a value and where it
 * stands, and gives a copy with the known keys only, or throws FormatError with that place.
 */

/** Something on the wire or on disk is not as its format says. */
export class FormatError extends Error {
  override readonly name = 'FormatError';
}

export type Shape<T> = (value: unknown, where: string) => T;

export const text =
  (lengthMax: number, pattern?: RegExp): Shape<string> =>
  (value, where) => {
    if (typeof value !== 'string') throw new FormatError(`${where} is no text`);
    if (value.length > lengthMax) throw new FormatError(`${where} is too long`);
    if (pattern !== undefined && !pattern.test(value)) {
      throw new FormatError(`${where} is not as it must be`);
    }
    return value;
  };

/** A whole number from `low` to `high`. */
export const whole =
  (low = 0, high = Number.MAX_SAFE_INTEGER): Shape<number> =>
  (value, where) => {
    const ok = Number.isSafeInteger(value) && (value as number) >= low && (value as number) <= high;
    if (!ok) throw new FormatError(`${where} is no number from ${low} to ${high}`);
    return value as number;
  };

export const flag: Shape<boolean> = (value, where) => {
  if (typeof value !== 'boolean') throw new FormatError(`${where} is neither true nor false`);
  return value;
};

export const orNull =
  <T>(shape: Shape<T>): Shape<T | null> =>
  (value, where) =>
    value === null ? null : shape(value, where);

export const listOf =
  <T>(shape: Shape<T>, countMax: number): Shape<readonly T[]> =>
  (value, where) => {
    if (!Array.isArray(value)) throw new FormatError(`${where} is no list`);
    if (value.length > countMax)
      throw new FormatError(`${where} has more than ${countMax} entries`);
    return value.map((each, index) => shape(each, `${where}[${index}]`));
  };

/** Keys that are not named are left out: a newer node may send them. */
export const object =
  <T extends object>(fields: { readonly [K in keyof T]: Shape<T[K]> }): Shape<T> =>
  (value, where) => {
    if (typeof value !== 'object' || value === null || Array.isArray(value)) {
      throw new FormatError(`${where} is no object`);
    }
    const given = value as Record<string, unknown>;
    const taken: Record<string, unknown> = {};
    for (const key of Object.keys(fields) as (keyof T & string)[]) {
      const own = Object.hasOwn(given, key) ? given[key] : undefined;
      taken[key] = fields[key](own, `${where}.${key}`);
    }
    return taken as T;
  };
