/**
 * Asks a keeper, over its Unix socket, what became of what it keeps: `status\n` gets one JSON line.
 * A keeper outlives the daemon, so this is how a restarted daemon finds what was promoted.
 */
import { createConnection } from 'node:net';
import { ReplicationError } from '../base/errors.js';

export interface KeeperStatus {
  readonly state: string;
  /** As the program sees it. */
  readonly pid: number;
  readonly hostPid: number;
  readonly epoch: number;
  readonly lazyPages: number;
  /** Still in the page store only. */
  readonly coldPages: number;
  /** That raise SIGBUS: their content was damaged in the store. */
  readonly damagedPages: number;
  /** Threads that wait for a page from the store, and the longest wait of one until now. */
  readonly waitingFaults: number;
  readonly waitingUs: number;
  /** Until nothing was missing any more, from the promotion; 0: not yet. */
  readonly refillUs: number;
  /** Why the store does not answer; empty: it does. */
  readonly storeTrouble: string;
  readonly residentBytes: number;
  readonly exited: boolean;
  /** Wait status, once exited. */
  readonly status: number | undefined;
}

const answerBytesMax = 64 * 1024;

/** Throws a SystemError (ENOENT, ECONNREFUSED: no keeper there) or ERR_TIMEOUT. */
export async function askKeeper(path: string, timeoutMs = 1000): Promise<KeeperStatus> {
  return parseKeeperStatus(await askLine(path, 'status\n', timeoutMs), path);
}

function askLine(path: string, request: string, timeoutMs: number): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = createConnection(path);
    let answer = '';
    const fail = (error: Error): void => {
      socket.destroy();
      reject(error);
    };
    socket.setEncoding('utf8');
    socket.setTimeout(timeoutMs, () => {
      fail(new ReplicationError('ERR_TIMEOUT', `the keeper at ${path} does not answer`));
    });
    socket.on('error', fail);
    socket.on('connect', () => socket.write(request));
    socket.on('data', (chunk: string) => {
      answer += chunk;
      if (answer.length > answerBytesMax) fail(malformed(path));
      if (!answer.includes('\n')) return;
      socket.destroy();
      resolve(answer.slice(0, answer.indexOf('\n')));
    });
    socket.on('end', () => fail(malformed(path)));
  });
}

function malformed(path: string): ReplicationError {
  return new ReplicationError('ERR_NATIVE', `the keeper at ${path} gave no understandable answer`);
}

export function parseKeeperStatus(line: string, path: string): KeeperStatus {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    throw malformed(path);
  }
  if (typeof value !== 'object' || value === null) throw malformed(path);
  const fields = value as Record<string, unknown>;
  const number = (key: string): number => {
    const found = fields[key];
    if (typeof found !== 'number' || !Number.isSafeInteger(found)) throw malformed(path);
    return found;
  };
  if (typeof fields['state'] !== 'string') throw malformed(path);
  return {
    state: fields['state'],
    pid: number('pid'),
    hostPid: number('hostPid'),
    epoch: number('epoch'),
    lazyPages: number('lazyPages'),
    coldPages: number('coldPages'),
    damagedPages: number('damagedPages'),
    waitingFaults: number('waitingFaults'),
    waitingUs: number('waitingUs'),
    refillUs: number('refillUs'),
    storeTrouble: typeof fields['storeTrouble'] === 'string' ? fields['storeTrouble'] : '',
    residentBytes: number('residentBytes'),
    exited: fields['exited'] === true,
    status: typeof fields['status'] === 'number' ? fields['status'] : undefined,
  };
}
