/** Takes files that other nodes ship, piece by piece, into the store of shipped files. */
import type { ShipChunk, ShipFile } from '../format/peer-messages.js';
import type { IncomingFile, ShippedFiles } from './shipped-files.js';

interface Transfer {
  readonly file: IncomingFile;
  heardMs: number;
}

/** A node that fell silent in the middle of a file. */
const idleMs = 60_000;
const transfersMax = 64;

/** Of the files of one replica. */
export const shippedUser = (name: string, generation: number): string => `${name}.${generation}`;

export class FileReceiver {
  readonly #files: ShippedFiles;
  readonly #nowMs: () => number;
  /** By node and the number of the request that announced it. */
  readonly #transfers = new Map<string, Transfer>();

  constructor(files: ShippedFiles, nowMs: () => number) {
    this.#files = files;
    this.#nowMs = nowMs;
  }

  /** False: its content is here already. Throws ERR_LIMIT. */
  async announce(node: string, announced: ShipFile): Promise<boolean> {
    await this.#abandonIdle();
    const { request, name, generation, sha256, sizeBytes } = announced;
    const user = shippedUser(name, generation);
    if (this.#files.pathOf(sha256) !== undefined) {
      this.#files.expect(user, sha256);
      return false;
    }
    const key = `${node} ${request}`;
    await this.#transfers.get(key)?.file.abandon();
    if (this.#transfers.size >= transfersMax) throw new Error('too many files are on their way');
    const file = await this.#files.receive(user, sha256, sizeBytes);
    this.#transfers.set(key, { file, heardMs: this.#nowMs() });
    return true;
  }

  /** Throws ERR_LIMIT for what was not announced so, and what the disk says. */
  async take(node: string, { transfer, data, last }: ShipChunk): Promise<void> {
    const key = `${node} ${transfer}`;
    const found = this.#transfers.get(key);
    if (found === undefined) throw new Error('no such file is on its way');
    found.heardMs = this.#nowMs();
    try {
      await found.file.write(Buffer.from(data, 'base64'));
      if (last) await found.file.finish();
    } catch (error) {
      this.#transfers.delete(key);
      await found.file.abandon().catch(() => undefined);
      throw error;
    }
    if (last) this.#transfers.delete(key);
  }

  async #abandonIdle(): Promise<void> {
    const before = this.#nowMs() - idleMs;
    for (const [key, { file, heardMs }] of this.#transfers) {
      if (heardMs > before) continue;
      this.#transfers.delete(key);
      await file.abandon().catch(() => undefined);
    }
  }
}
