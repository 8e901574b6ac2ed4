/** What is asked of a keeper whose process has ended, and told to it by the asking. */
import { hasCode } from '../base/errors.js';
import { describeWaitStatus } from './death.js';
import type { GroupHost, GroupSpec } from './group-spec.js';

type Host = Pick<GroupHost, 'askKeeper' | 'clock'>;

/** Looks at a keeper that is no longer needed, and the time between them. */
const dismissPollsMax = 60;
const dismissPollMs = 500;
/** Looks at a keeper until it has reaped what is known to be dead, and the time between them. */
const reapedPollsMax = 5;
const reapedPollMs = 20;
const readPollMs = 500;

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

/** What the keeper reads pages from the store for may live on after its group; undefined: nobody does. */
export function forgetStoreAfter(
  host: Pick<GroupHost, 'askKeeper' | 'clock' | 'forgetStore'>,
  socket: string | undefined,
  spec: GroupSpec,
  closing: AbortSignal,
): void {
  if (socket === undefined) host.forgetStore(spec);
  else void lastReadBy(host, socket, closing).then((done) => done && host.forgetStore(spec));
}

async function lastReadBy(
  host: Pick<GroupHost, 'askKeeper' | 'clock'>,
  socket: string,
  closing: AbortSignal,
): Promise<boolean> {
  try {
    while (!closing.aborted) {
      const { state, coldPages } = await host.askKeeper(socket);
      if (state === 'ended' || coldPages === 0) return true;
      await host.clock.sleep(readPollMs, closing);
    }
    return false;
  } catch (error) {
    // One that is slow is there still.
    return !hasCode(error, 'ERR_TIMEOUT') || lastReadBy(host, socket, closing);
  }
}

/** Added to why a process cannot be copied. */
export const damageText = (pages: number): string =>
  pages === 0 ? '' : `; ${pages} of its pages were damaged in the page store and cannot be read`;
