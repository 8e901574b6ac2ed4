/**
 * Files of primaries elsewhere that this node lacks or has differently, by the hash of their
 * content: docs/decisions/009-shipped-files.md. Each is checked before it counts, is there once
 * however many replicas use it, and is removed when none does.
 */
import { createHash } from 'node:crypto';
import {
  lstat,
  open,
  readdir,
  readFile,
  rename,
  rm,
  rmdir,
  stat,
  unlink,
  type FileHandle,
} from 'node:fs/promises';
import { join } from 'node:path';
import { replaceFile } from '../base/durable-file.js';
import { describe, hasCode, ReplicationError } from '../base/errors.js';
import { makeFolder } from '../base/folder.js';
import { formatBytes } from '../base/units.js';
import { formatChecked, parseChecked } from '../format/checked-file.js';

const kind = { mark: 'replpage-shipped', version: 1 } as const;
/** Nobody writes to them; whoever's replica has one mapped sees it at its path only. */
const contentMode = 0o555;
const hashPattern = /^[0-9a-f]{64}$/;

/** What one replica uses. */
interface Use {
  readonly hashes: readonly string[];
  /** Empty files and folders that were made for copies to appear at their paths, in that order. */
  readonly made: readonly string[];
}

function readUse(value: unknown): Use {
  const { hashes, made } = value as Partial<Use>;
  const texts = (list: unknown): list is string[] =>
    Array.isArray(list) && list.every((each) => typeof each === 'string');
  if (!texts(hashes) || !texts(made) || !hashes.every((hash) => hashPattern.test(hash))) {
    throw new Error('it is no list of files');
  }
  return { hashes, made };
}

/** One file on its way in. Nothing of it counts before `finish`. */
export class IncomingFile {
  readonly #file: FileHandle;
  readonly #path: string;
  readonly #place: string;
  readonly #sha256: string;
  readonly #sizeBytes: number;
  readonly #hash = createHash('sha256');
  readonly #ended: (whole: boolean) => void;
  #written = 0;
  #over = false;

  constructor(
    file: FileHandle,
    path: string,
    place: string,
    expected: { readonly sha256: string; readonly sizeBytes: number },
    ended: (whole: boolean) => void,
  ) {
    this.#file = file;
    this.#path = path;
    this.#place = place;
    this.#sha256 = expected.sha256;
    this.#sizeBytes = expected.sizeBytes;
    this.#ended = ended;
  }

  /** In order. Throws ERR_LIMIT for more than was announced, and what the disk says. */
  async write(chunk: Buffer): Promise<void> {
    if (this.#written + chunk.length > this.#sizeBytes) {
      throw new ReplicationError('ERR_LIMIT', 'a shipped file is longer than was announced');
    }
    this.#hash.update(chunk);
    this.#written += chunk.length;
    await this.#file.writeFile(chunk);
  }

  /** Durable, at its place. Throws, and removes it, when it is not what was announced. */
  async finish(): Promise<void> {
    const whole = this.#written === this.#sizeBytes && this.#hash.digest('hex') === this.#sha256;
    if (!whole) {
      await this.abandon();
      throw new ReplicationError(
        'ERR_LIMIT',
        `a shipped file has another content than was announced (${this.#sha256.slice(0, 12)})`,
        { advice: 'it changed on its way, or while it was read: let it be shipped again' },
      );
    }
    try {
      await this.#file.chmod(contentMode);
      await this.#file.sync();
      await this.#file.close();
      await rename(this.#path, this.#place);
    } catch (error) {
      await this.abandon();
      throw error;
    }
    this.#over = true;
    this.#ended(true);
  }

  /** Nothing where it is over already. */
  async abandon(): Promise<void> {
    if (this.#over) return;
    this.#over = true;
    await this.#file.close().catch(() => undefined);
    await rm(this.#path, { force: true });
    this.#ended(false);
  }
}

export class ShippedFiles {
  readonly #folder: string;
  readonly #bytesMax: number;
  readonly #uses = new Map<string, Use>();
  /** Content that is there, with its size. */
  readonly #sizes = new Map<string, number>();
  /** By user: what came for a replica that is still to be built. */
  readonly #arrived = new Map<string, Set<string>>();
  #announcedBytes = 0;
  #incoming = 0;

  private constructor(folder: string, bytesMax: number) {
    this.#folder = folder;
    this.#bytesMax = bytesMax;
  }

  /**
   * Reads what an earlier daemon left there; half a file is removed. `bytesMax` is for all content
   * together. Throws ERR_FOLDER, ERR_STATE_FILE.
   */
  static async open(folder: string, bytesMax: number): Promise<ShippedFiles> {
    const files = new ShippedFiles(folder, bytesMax);
    for (const part of ['', 'content', 'incoming', 'users']) {
      await makeFolder(join(folder, part), 0o700, 'the folder for shipped files');
    }
    for (const name of await readdir(join(folder, 'incoming'))) {
      await rm(join(folder, 'incoming', name), { force: true });
    }
    for (const name of await readdir(join(folder, 'content'))) {
      if (!hashPattern.test(name)) continue;
      files.#sizes.set(name, (await stat(join(folder, 'content', name))).size);
    }
    for (const name of await readdir(join(folder, 'users'))) await files.#readUse(name);
    await files.#sweep();
    return files;
  }

  /** Of all content that is there. */
  get bytes(): number {
    return [...this.#sizes.values()].reduce((sum, size) => sum + size, 0);
  }

  /** Where the content is, for a keeper; undefined where it has to be shipped. */
  pathOf(sha256: string): string | undefined {
    return this.#sizes.has(sha256) ? this.#place(sha256) : undefined;
  }

  /** Content that is there stays for a replica that keep() is called for next. */
  expect(user: string, sha256: string): void {
    this.#arrived.set(user, (this.#arrived.get(user) ?? new Set()).add(sha256));
  }

  /** What a replica uses; none: it uses nothing. */
  hashesOf(user: string): readonly string[] {
    return this.#uses.get(user)?.hashes ?? [];
  }

  /** For a replica that keep() is called for next. Throws ERR_LIMIT where there is no room. */
  async receive(user: string, sha256: string, sizeBytes: number): Promise<IncomingFile> {
    if (!hashPattern.test(sha256) || !Number.isSafeInteger(sizeBytes) || sizeBytes < 0) {
      throw new ReplicationError('ERR_LIMIT', 'a shipped file was announced without hash or size');
    }
    if (this.bytes + this.#announcedBytes + sizeBytes > this.#bytesMax) {
      throw new ReplicationError(
        'ERR_LIMIT',
        `there is no room for a shipped file of ${formatBytes(sizeBytes)}: ` +
          `shipped files may take ${formatBytes(this.#bytesMax)} on this node`,
        { advice: 'install the same packages on both nodes' },
      );
    }
    const path = join(this.#folder, 'incoming', String(++this.#incoming));
    const file = await open(path, 'wx', 0o600);
    this.#announcedBytes += sizeBytes;
    const expected = { sha256, sizeBytes };
    const arrived = this.#arrived.get(user) ?? new Set();
    this.#arrived.set(user, arrived);
    return new IncomingFile(file, path, this.#place(sha256), expected, (whole) => {
      this.#announcedBytes -= sizeBytes;
      if (!whole) return;
      arrived.add(sha256);
      this.#sizes.set(sha256, sizeBytes);
    });
  }

  /** What a replica uses from now on, instead of what it used; to be called before it does. */
  async keep(user: string, use: Use): Promise<void> {
    for (const hash of use.hashes) {
      if (!this.#sizes.has(hash)) throw new Error(`shipped file ${hash} is not there`);
    }
    this.#uses.set(user, use);
    this.#forgetArrived(user);
    await replaceFile(this.#listOf(user), formatChecked(kind, use), 0o600);
    await this.#sweep();
  }

  /** More that was made for it. */
  async addMade(user: string, made: readonly string[]): Promise<void> {
    const use = this.#uses.get(user);
    if (use !== undefined) await this.keep(user, { ...use, made: [...use.made, ...made] });
  }

  /** The replica has ended. Removes what was made for it and what nobody uses any more. */
  async release(user: string): Promise<void> {
    for (const path of this.#uses.get(user)?.made.toReversed() ?? []) await removeIfEmpty(path);
    this.#uses.delete(user);
    this.#arrived.delete(user);
    await rm(this.#listOf(user), { force: true });
    await this.#sweep();
  }

  /** Of earlier generations too, whose replicas never came. */
  #forgetArrived(user: string): void {
    const group = user.slice(0, user.lastIndexOf('.'));
    for (const other of this.#arrived.keys()) {
      if (other.slice(0, other.lastIndexOf('.')) === group) this.#arrived.delete(other);
    }
  }

  get users(): readonly string[] {
    return [...this.#uses.keys()];
  }

  #place(sha256: string): string {
    return join(this.#folder, 'content', sha256);
  }

  #listOf(user: string): string {
    return join(this.#folder, 'users', `${encodeURIComponent(user)}.list`);
  }

  async #readUse(name: string): Promise<void> {
    if (!name.endsWith('.list')) return;
    const path = join(this.#folder, 'users', name);
    try {
      const use = readUse(parseChecked(kind, await readFile(path)));
      this.#uses.set(decodeURIComponent(name.slice(0, -'.list'.length)), use);
    } catch (error) {
      throw new ReplicationError('ERR_STATE_FILE', `cannot use ${path}: ${describe(error)}`, {
        advice: 'it says which shipped files a replica uses: end that replica, then remove it',
      });
    }
  }

  async #sweep(): Promise<void> {
    const kept = [...this.#uses.values()].flatMap(({ hashes }) => hashes);
    const used = new Set([...kept, ...[...this.#arrived.values()].flatMap((each) => [...each])]);
    for (const hash of this.#sizes.keys()) {
      if (used.has(hash)) continue;
      await rm(this.#place(hash), { force: true });
      this.#sizes.delete(hash);
    }
  }
}

/** What somebody has put something into, or replaced, stays. */
async function removeIfEmpty(path: string): Promise<void> {
  try {
    const found = await lstat(path);
    if (found.isDirectory()) await rmdir(path);
    else if (found.isFile() && found.size === 0) await unlink(path);
  } catch (error) {
    if (!hasCode(error, 'ENOENT') && !hasCode(error, 'ENOTEMPTY')) throw error;
  }
}
