/** How much memory the daemon takes, watched while other things are measured. */
import { statusField } from '../../test/support/processes.js';
import type { Figures } from '../figures.js';

const everyMs = 200;

export class DaemonMemory {
  #stagingKiB = 0;
  #ownKiB = 0;
  #pid = 0;
  #timer: NodeJS.Timeout | undefined;

  watch(pid: number): void {
    this.#pid = pid;
    this.#timer ??= setInterval(() => void this.#look(), everyMs);
  }

  stop(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  report(figures: Figures): void {
    this.stop();
    figures.atMost('staging memory', this.#stagingKiB / 1024, 'MiB', 256);
    figures.atMost('daemon memory beyond staging', this.#ownKiB / 1024, 'MiB', 150);
  }

  async #look(): Promise<void> {
    // Staging is a memory file that the daemon maps: shared memory is nothing else there.
    const [shared, anonymous, file] = await Promise.all(
      ['RssShmem', 'RssAnon', 'RssFile'].map(async (name) =>
        Number((await statusField(this.#pid, name))?.split(' ')[0] ?? 0),
      ),
    );
    this.#stagingKiB = Math.max(this.#stagingKiB, shared ?? 0);
    this.#ownKiB = Math.max(this.#ownKiB, (anonymous ?? 0) + (file ?? 0));
  }
}
