/** The shipped files of the replicas that this node keeps, and of those that run here now. */
import { readdir, readFile, readlink } from 'node:fs/promises';
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
  /** Whether there is such a replica. */
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

  /** Before a replica uses it; `expect` is what makes uses() say so. */
  async keep<T>(
    name: string,
    generation: number,
    hashes: readonly string[],
    expect: () => T,
  ): Promise<T> {
    if (hashes.length === 0) return expect();
    const { files } = await this.#open();
    // In one turn: nothing is tidied up in between.
    const expected = await this.#inTurn(async () => {
      await files.keep(shippedUser(name, generation), { hashes, made: [] });
      return expect();
    });
    await this.sweep();
    return expected;
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

  /** Removes what nothing uses any more, whether this daemon knows of it or not. */
  async sweep(): Promise<void> {
    await this.#quietly(async ({ files }) => {
      const idle = files.users.filter((user) => {
        const dot = user.lastIndexOf('.');
        return !this.#options.uses(user.slice(0, dot), Number(user.slice(dot + 1)));
      });
      if (idle.length === 0) return;
      const mounted = await mountedContent();
      for (const user of idle) {
        if (!files.hashesOf(user).some((hash) => mounted.has(hash))) await files.release(user);
      }
    });
  }

  async #open(): Promise<Store> {
    const opening = (this.#store ??= ShippedFiles.open(this.#options.folder, bytesMax).then(
      (files) => ({ files, receiver: new FileReceiver(files, () => this.#options.nowMs()) }),
    ));
    try {
      return await opening;
    } catch (error) {
      if (this.#store === opening) this.#store = undefined;
      throw error;
    }
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

/** Hashes of what is mounted in the mount namespace of some process: it may map it again. */
async function mountedContent(): Promise<ReadonlySet<string>> {
  const found = new Set<string>();
  const seen = new Set<string>();
  const pids = (await readdir('/proc')).filter((name) => /^[0-9]+$/.test(name));
  for (const pid of pids) {
    const space = await readlink(`/proc/${pid}/ns/mnt`).catch(() => '');
    if (space === '' || seen.has(space)) continue;
    seen.add(space);
    const mounts = await readFile(`/proc/${pid}/mountinfo`, 'utf8').catch(() => '');
    for (const [, hash = ''] of mounts.matchAll(/\/content\/([0-9a-f]{64})(?:\/\/deleted)? /g)) {
      found.add(hash);
    }
  }
  return found;
}
