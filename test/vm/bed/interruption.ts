/** What happens when the tool is told to end: nothing new is started, and what runs is taken down. */
import { BedError, reasonOf } from './bed-error.js';

const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
const limitMs = 15_000;
/** As a shell gives it for an interrupt. */
const interruptedStatus = 130;

const groups = new Set<number>();
let interrupted = false;

/** @throws BedError after an interruption */
export function goOn(): void {
  if (interrupted) throw new BedError('interrupted');
}

/** A process group of ours is killed by an interruption, until the result is called. */
export function killedWhenInterrupted(group: number | undefined): () => void {
  if (group === undefined) return () => undefined;
  groups.add(group);
  return () => groups.delete(group);
}

/**
 * Runs `body`; when this process is told to end meanwhile, all its programs are killed, `clean` runs
 * before and after `body` has noticed, and the process ends. What `clean` gives was left behind.
 */
export async function interruptible<T>(
  body: () => Promise<T>,
  clean: () => Promise<readonly string[]>,
): Promise<T> {
  const running = body();
  const handle = (signal: NodeJS.Signals): void => {
    if (interrupted) return;
    interrupted = true;
    for (const group of groups) {
      try {
        process.kill(-group, 'SIGKILL');
      } catch {
        // It has just ended.
      }
    }
    const noticed = Promise.race([
      running.catch(() => undefined),
      new Promise((resolve) => setTimeout(resolve, limitMs)),
    ]);
    console.error(`${signal}: taking down what there is`);
    void clean()
      .then(() => noticed)
      .then(clean)
      .then((left) => left.forEach((each) => console.error(`left behind: ${each}`)))
      .catch((error: unknown) => console.error(reasonOf(error)))
      .finally(() => process.exit(interruptedStatus));
  };
  for (const signal of signals) process.on(signal, handle);
  try {
    return await running;
  } finally {
    if (!interrupted) for (const signal of signals) process.off(signal, handle);
  }
}
