/** Waiting for what must come to pass, with a limit and a message. Never a blind sleep. */
import { setTimeout as pause } from 'node:timers/promises';

export class WaitError extends Error {
  override readonly name = 'WaitError';
}

/**
 * REPLPAGE_TEST_SLOWNESS=10 gives everything ten times as long: an emulated machine is slow. A test
 * multiplies each limit that it has beside waitFor's with it.
 */
export const slowness = Number(process.env['REPLPAGE_TEST_SLOWNESS'] ?? 1);
/** There nothing that a clock measures is judged, pauses included: they may last as long as can be. */
export const slow = slowness > 1;
export const slowPauses = { maxPause: '60s', freezeDeadline: '1s' } as const;

/**
 * Asks `condition` every few milliseconds until it gives something other than false or undefined,
 * and gives that. `message` is a text, or a function that tells what was seen instead.
 */
export async function waitFor<T>(
  condition: () => T | Promise<T>,
  limitMs: number,
  message: string | (() => string | Promise<string>),
): Promise<Exclude<T, false | undefined>> {
  const start = performance.now();
  for (let stepMs = 1; ; stepMs = Math.min(20, stepMs * 2)) {
    const result = await condition();
    if (result !== false && result !== undefined) return result as Exclude<T, false | undefined>;
    if (performance.now() - start > limitMs * slowness) {
      const text = typeof message === 'string' ? message : await message();
      throw new WaitError(`after ${limitMs * slowness} ms: ${text}`);
    }
    await pause(stepMs);
  }
}

/** Lets time pass while something goes on under test; not for waiting until something is true. */
export const letRun = (ms: number): Promise<void> => pause(ms);
