/** The shipped files of the replicas that this node keeps, and of those that run here now. */
import type { Log } from '../base/log.js';
import { describe } from '../base/errors.js';
import type { FileTaken, ReplicaMessage } from '../format/peer-messages.js';
import { FileReceiver, shippedUser } from '../replica/file-receiver.js';
import { ShippedFiles } from '../replica/shipped-files.js';

/** Of all content together. */
const bytesMax = 8 * 1024 ** 3;

export interface ShippedForReplicasOptions {
  readonly folder: string;
  readonly log: Log;
  nowMs(): number;
  /** Whether a replica or a process that came from one may have them mapped. */
  uses(name: string, generation: number): boolean;
}

interface Store {
  readonly files: ShippedFiles;
  readonly receiver: FileReceiver;
}

type Shipment = Extract<ReplicaMessage, { kind: 'shipFile' | 'shipChunk' }>;

export class ShippedForReplicas {
  readonly #options: ShippedForReplicasOptions;
  /** Opened when a replica is to be kept here for the first time. */
  #store: Promise<Store> | undefined;
  /** What the store is asked for one after the other. */
  #turn: Promise<unknown> = Promise.resolve();

  constructor(options: ShippedForReplicasOptions) {
    this.#options = options;
  }

  /** Where content of a hash is. Throws ERR_FOLDER, ERR_STATE_FILE. */
  async places(): Promise<(sha256: string) => string | undefined> {
    const { files } = await this.#open();
    return (sha256) => files.pathOf(sha256);
  }

  /** Before a replica uses it. */
  async keep(name: string, generation: number, hashes: readonly string[]): Promise<void> {
    await this.sweep();
    if (hashes.length === 0) return;
    const { files } = await this.#open();
    await this.#inTurn(() => files.keep(shippedUser(name, generation), { hashes, made: [] }));
  }

  /** Places that a replica's keeper made, to be removed when it has ended. */
  async made(
    { name, generation }: { readonly name: string; readonly generation: number },
    made: readonly string[],
  ): Promise<void> {
    if (made.length === 0) return;
    await this.#quietly(({ files }) => files.addMade(shippedUser(name, generation), made));
  }

  /** Never rejects: why not is in the answer. */
  async take(node: string, { kind, body }: Shipment): Promise<FileTaken> {
    const { request } = body;
    try {
      const { receiver } = await this.#open();
      const wanted = await this.#inTurn(async () => {
        if (kind === 'shipFile') return receiver.announce(node, body);
        await receiver.take(node, body);
        return false;
      });
      return { request, why: null, wanted };
    } catch (error) {
      return { request, why: describe(error).slice(0, 900), wanted: false };
    }
  }

  /** Removes what nothing uses any more. */
  async sweep(): Promise<void> {
    await this.#quietly(async ({ files }) => {
      for (const user of files.users) {
        const dot = user.lastIndexOf('.');
        const used = this.#options.uses(user.slice(0, dot), Number(user.slice(dot + 1)));
        if (!used) await files.release(user);
      }
    });
  }

  #open(): Promise<Store> {
    this.#store ??= ShippedFiles.open(this.#options.folder, bytesMax).then((files) => ({
      files,
      receiver: new FileReceiver(files, () => this.#options.nowMs()),
    }));
    return this.#store;
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#turn.then(work);
    this.#turn = done.catch(() => undefined);
    return done;
  }

  async #quietly(work: (store: Store) => Promise<void>): Promise<void> {
    if (this.#store === undefined) return;
    try {
      const store = await this.#store;
      await this.#inTurn(() => work(store));
    } catch (error) {
      this.#options.log.warn({ reason: describe(error) }, 'shipped files are not tidied up');
    }
  }
}
