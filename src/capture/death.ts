/** How a primary ended, in words. */
import { constants } from 'node:os';
import type { NativeGroupEvent } from '../native/group.js';

type Died = Extract<NativeGroupEvent, { type: 'died' }>;

export function signalName(signal: number): string {
  const found = Object.entries(constants.signals).find(([, number]) => number === signal);
  return found?.[0] ?? `signal ${signal}`;
}

export function describeDeath(died: Omit<Died, 'type'>): string {
  const by = died.signal === undefined ? 'a signal' : signalName(died.signal);
  switch (died.cause) {
    case 'sigkill':
      return 'killed by SIGKILL';
    case 'signal':
      return `ended by ${by}`;
    case 'crash':
      return `crashed by ${by}`;
    case 'exit':
      return `ended by itself with status ${died.status ?? 0}`;
  }
}

/** A wait status as waitpid(2) gives it. */
export function describeWaitStatus(status: number): string {
  const signal = status & 0x7f;
  return signal === 0
    ? `exited with status ${(status >> 8) & 0xff}`
    : `was ended by ${signalName(signal)}`;
}

/**
 * What native code says, for a user: signals by name, and the file rule instead of the error number
 * that carries it (ESTALE has no other meaning here).
 */
export function inWords(text: string): string {
  return nameSignals(text).replaceAll(
    ': Stale file handle',
    ' (the file rule: --files keep promotes all the same)',
  );
}

/** Native code gives signals by number: "ended by signal 15" -> "ended by SIGTERM". */
export function nameSignals(text: string): string {
  return text.replace(/\bsignal (\d+)/g, (_all, number: string) => signalName(Number(number)));
}
