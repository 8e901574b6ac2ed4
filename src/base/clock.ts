/** Time as a dependency, so that whoever paces or waits can be tested without waiting. */
import { setTimeout as sleepFor } from 'node:timers/promises';

export interface Clock {
  /** Monotonic, in milliseconds with a fraction. */
  nowMs(): number;
  /** Wall time, for what people read only. */
  wall(): Date;
  /** Resolves after `ms`, or at once when `signal` aborts: look at the signal afterwards. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
}

export const systemClock: Clock = {
  nowMs: () => performance.now(),
  wall: () => new Date(),
  async sleep(ms, signal) {
    if (signal?.aborted) return;
    try {
      await sleepFor(ms, undefined, signal ? { signal } : {});
    } catch {
      // The only rejection is the abort, and the caller looks at its own signal.
    }
  },
};
