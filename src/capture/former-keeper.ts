/** What is asked of a keeper whose process has ended, and told to it by the asking. */
import { describeWaitStatus } from './death.js';
import type { GroupHost } from './group-spec.js';

type Host = Pick<GroupHost, 'askKeeper' | 'clock'>;

/** Looks at a keeper that is no longer needed, and the time between them. */
const dismissPollsMax = 60;
const dismissPollMs = 500;
/** Looks at a keeper until it has reaped what is known to be dead, and the time between them. */
const reapedPollsMax = 5;
const reapedPollMs = 20;

/**
 * A keeper whose processes have ended stays for a while, in case somebody asks how they ended. Once
 * told it goes; nobody else will ask.
 */
export async function dismissKeeper(
  host: Host,
  socket: string,
  closing: AbortSignal,
): Promise<void> {
  try {
    for (let poll = 0; poll < dismissPollsMax && !closing.aborted; poll++) {
      if ((await host.askKeeper(socket)).state === 'ended') return;
      await host.clock.sleep(dismissPollMs, closing);
    }
  } catch {
    // It has gone already.
  }
}

/** The keeper is the parent of what was promoted, and knows. Undefined where nobody does. */
export async function howItEnded(
  host: Host,
  socket: string | undefined,
  closing: AbortSignal,
): Promise<string | undefined> {
  for (let poll = 0; socket !== undefined && poll < reapedPollsMax; poll++) {
    try {
      const { exited, status } = await host.askKeeper(socket);
      if (exited && status !== undefined) return describeWaitStatus(status);
    } catch {
      return undefined;
    }
    await host.clock.sleep(reapedPollMs, closing);
  }
  return undefined;
}
