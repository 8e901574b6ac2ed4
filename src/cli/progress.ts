/** One line on stderr that redraws itself: bytes, rate and time left. Silent where nobody watches. */
import { formatBytes } from '../base/units.js';

const redrawMs = 100;
const barWidth = 24;

export class ProgressBar {
  readonly #label: string;
  readonly #startedMs = performance.now();
  #drawnMs = 0;
  #drawn = false;

  constructor(label: string) {
    this.#label = label;
  }

  update(bytes: number, bytesTotal: number): void {
    const now = performance.now();
    if (!process.stderr.isTTY || now - this.#drawnMs < redrawMs) return;
    this.#drawnMs = now;
    this.#drawn = true;
    const line = progressLine(bytes, bytesTotal, now - this.#startedMs);
    process.stderr.write(`\r\x1b[K${this.#label} ${line}`);
  }

  end(): void {
    if (this.#drawn) process.stderr.write('\r\x1b[K');
  }
}

/** "[######------] 512 MiB of 1.0 GiB, 1.1 GiB/s, 0.5 s left" */
export function progressLine(bytes: number, bytesTotal: number, elapsedMs: number): string {
  const share = bytesTotal > 0 ? Math.min(1, bytes / bytesTotal) : 0;
  const filled = Math.round(share * barWidth);
  const bar = '#'.repeat(filled) + '-'.repeat(barWidth - filled);
  const speed = rateText(bytes, elapsedMs);
  // What was written meanwhile is copied once more, and comes on top.
  if (bytes > bytesTotal) return `[${bar}] ${formatBytes(bytes)}, changes included${speed}`;
  const rate = elapsedMs > 0 ? (bytes / elapsedMs) * 1000 : 0;
  const left = rate > 0 ? `, ${((bytesTotal - bytes) / rate).toFixed(1)} s left` : '';
  return `[${bar}] ${formatBytes(bytes)} of ${formatBytes(bytesTotal)}${speed}${left}`;
}

function rateText(bytes: number, elapsedMs: number): string {
  return `, ${formatBytes(elapsedMs > 0 ? (bytes / elapsedMs) * 1000 : 0)}/s`;
}
