/** Sends a file to a node that lacks it, over the nodes' control connection. */
import { createHash } from 'node:crypto';
import { open, type FileHandle } from 'node:fs/promises';
import { ReplicationError } from '../base/errors.js';
import type { FileTaken, ReplicaMessage } from '../format/peer-messages.js';

/** Small beside what may be on its way to a node: a heartbeat behind it is not late. */
export const shipChunkBytes = 192 * 1024;

export interface SentFile {
  readonly path: string;
  /** A link that leads to the very file. */
  readonly source: string;
  /** When it was asked for. */
  readonly sizeBytes: number;
}

/** Asks the node, and gives its answer. */
export type AskNode = (message: (request: number) => ReplicaMessage) => Promise<FileTaken>;

/** For the replica of that generation. Gives the hash of the content, hexadecimal. Throws. */
export async function sendFile(
  { path, source, sizeBytes: expected }: SentFile,
  group: { readonly name: string; readonly generation: number },
  ask: AskNode,
): Promise<string> {
  const file = await open(source);
  try {
    const { sha256, sizeBytes } = await digest(file);
    if (sizeBytes !== expected) throw refusedFile(path, 'it has changed meanwhile');
    const { name, generation } = group;
    const taken = await ask((request) => ({
      kind: 'shipFile',
      body: { request, name, generation, sha256, sizeBytes },
    }));
    if (taken.why !== null) throw refusedFile(path, taken.why);
    if (taken.wanted) await sendContent({ file, path, sizeBytes }, taken.request, ask);
    return sha256;
  } finally {
    await file.close();
  }
}

async function sendContent(
  { file, path, sizeBytes }: { file: FileHandle; path: string; sizeBytes: number },
  transfer: number,
  ask: AskNode,
): Promise<void> {
  const room = Buffer.alloc(shipChunkBytes);
  for (let sent = 0, last = false; !last;) {
    const { bytesRead } = await file.read(room, 0, room.length, sent);
    sent += bytesRead;
    last = sent >= sizeBytes || bytesRead === 0;
    const data = room.toString('base64', 0, bytesRead);
    const taken = await ask((request) => ({
      kind: 'shipChunk',
      body: { request, transfer, data, last },
    }));
    if (taken.why !== null) throw refusedFile(path, taken.why);
  }
}

async function digest(file: FileHandle): Promise<{ sha256: string; sizeBytes: number }> {
  const hash = createHash('sha256');
  const room = Buffer.alloc(shipChunkBytes);
  let sizeBytes = 0;
  for (;;) {
    const { bytesRead } = await file.read(room, 0, room.length, sizeBytes);
    if (bytesRead === 0) return { sha256: hash.digest('hex'), sizeBytes };
    hash.update(room.subarray(0, bytesRead));
    sizeBytes += bytesRead;
  }
}

function refusedFile(path: string, why: string): ReplicationError {
  return new ReplicationError('ERR_REFUSED', `cannot ship ${path}: ${why}`, {
    advice: 'install the same packages on both nodes, or name another node with --to',
  });
}
