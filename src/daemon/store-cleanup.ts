/** Removes what an ended group has left in the page store. */
import { spawn } from 'node:child_process';
import { join } from 'node:path';

const patienceMs = 60_000;

/**
 * `rights`: of whoever named the store; undefined: ours. Works in a process of its own, since a
 * mount that hangs would keep a thread of ours for ever; what it cannot remove in a minute stays.
 */
export function removeFromStore(
  store: string,
  name: string,
  id: string,
  rights: { readonly uid: number; readonly gid: number } | undefined,
): void {
  if (!/^[0-9a-f]{16}$/.test(id)) return;
  const group = join(store, name);
  const script = 'rm -rf -- "$1/$2" && rmdir -- "$1" 2>/dev/null';
  const child = spawn('/bin/sh', ['-c', script, 'sh', group, id], {
    stdio: 'ignore',
    timeout: patienceMs,
    killSignal: 'SIGKILL',
    ...(rights === undefined ? {} : { uid: rights.uid, gid: rights.gid }),
  });
  child.on('error', () => undefined);
  child.unref();
}
