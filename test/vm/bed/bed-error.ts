/** What goes wrong with the test bed itself: what was being done, to what, why, and what to do. */
export class BedError extends Error {
  override readonly name = 'BedError';
}

/** What is needed cannot be had here: a matter of the machine and its network, not of the bed. */
export class UnavailableError extends BedError {}

export function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** The last lines of a text, for the end of a message. */
export function lastLines(text: string, count: number): string {
  return text.trimEnd().split('\n').slice(-count).join('\n');
}
