/** A first look at a page store that somebody has named. */
import { spawn } from 'node:child_process';

const patienceMs = 5_000;

/** Exit codes of the script, and what they mean. */
const troubles: Readonly<Record<number, string>> = {
  3: 'there is no such directory',
  4: 'it is no directory',
  5: 'it is not writable',
};
const script = `
[ -e "$1" ] || exit 3
[ -d "$1" ] || exit 4
[ -w "$1" ] || exit 5`;

/**
 * What is wrong with it, as far as that shows without the pager; undefined: nothing. Looks by a
 * process of its own, since a mount that hangs would keep a thread of ours for ever.
 */
export function troubleOfStore(store: string, waitMs = patienceMs): Promise<string | undefined> {
  return new Promise((resolve) => {
    const child = spawn('/bin/sh', ['-c', script, 'sh', store], { stdio: 'ignore' });
    const timer = setTimeout(() => {
      child.kill('SIGKILL'); // one that hangs in the kernel dies when the store answers
      child.unref();
      resolve(`it has not answered for ${Math.round(waitMs / 1000)} s`);
    }, waitMs);
    const end = (trouble: string | undefined): void => {
      clearTimeout(timer);
      resolve(trouble);
    };
    child.on('error', (error) => end(error.message));
    child.on('exit', (code) => end(code === null ? undefined : troubles[code]));
  });
}
