/** Bugs, not operating errors: kept in production, and the daemon detaches before it dies of one. */
export function assert(condition: unknown, message: string): asserts condition {
  if (!condition) throw new AssertionFailure(message);
}

/** For the default branch of a switch over a closed union. */
export function assertNever(value: never): never {
  throw new AssertionFailure(`unexpected value ${JSON.stringify(value)}`);
}

export class AssertionFailure extends Error {
  override readonly name = 'AssertionFailure';
}
