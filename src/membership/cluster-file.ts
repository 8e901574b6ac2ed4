/**
 * What a node knows of its cluster when its daemon is started: cluster.json in the state folder.
 * docs/formats/cluster-file.md. Unlike the list of groups it is never put aside: a node that forgot
 * its cluster would be a stranger to it, and its key is nowhere else.
 */
import { readWhole, replaceFile } from '../base/durable-file.js';
import { describe, hasCode, ReplicationError } from '../base/errors.js';
import { formatChecked, parseChecked } from '../format/checked-file.js';
import { idPattern, membersShape, type Member } from '../format/peer-messages.js';
import { FormatError, object, orNull, text, whole } from '../format/shape.js';
import type { Authority } from '../transport/certificates.js';
import type { Credentials } from '../transport/credentials.js';
import { certified, readCertificate } from '../transport/identity.js';
import { memberById } from './member-list.js';
import { certifies } from './renewal.js';

export interface ClusterRecord extends Credentials {
  /** This node's id. */
  readonly self: string;
  /** Of the CA, where this node holds it. */
  readonly caKey: string | null;
  /** Of certificates that are signed here, in milliseconds. */
  readonly certificateLifeMs: number;
  readonly members: readonly Member[];
}

const kind = { mark: 'replpage-cluster', version: 1 } as const;
const fileBytesMax = 4 * 1024 * 1024;
const pem = text(8192);

const recordShape = object<ClusterRecord>({
  ...{ cluster: text(16, idPattern), self: text(16, idPattern), certificate: pem },
  ...{ privateKey: pem, ca: pem, caKey: orNull(pem), certificateLifeMs: whole(1) },
  members: membersShape,
});

export async function writeCluster(path: string, record: ClusterRecord): Promise<void> {
  await replaceFile(path, formatChecked(kind, record), 0o600);
}

/** undefined when there is none. Throws ERR_STATE_FILE. */
export async function readCluster(path: string): Promise<ClusterRecord | undefined> {
  try {
    const file = await readWhole(path, fileBytesMax);
    return checked(recordShape(parseChecked(kind, file), 'the body'));
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return undefined;
    const message = `cannot read this node's part in its cluster from ${path}: ${describe(error)}`;
    throw new ReplicationError('ERR_STATE_FILE', message, {
      advice:
        'put a sound copy in its place and start the daemon again; without one, move it away, ' +
        'remove the node on another (replpage nodes remove), and join again',
    });
  }
}

function checked(record: ClusterRecord): ClusterRecord {
  const node = certified(readCertificate(record.certificate));
  if (node.cluster !== record.cluster || node.id !== record.self) {
    throw new FormatError('its certificate is that of another node');
  }
  if (!certifies(record.certificate, record.privateKey)) {
    throw new FormatError('key and certificate do not belong together');
  }
  if (memberById(record.members, record.self) === undefined) {
    throw new FormatError('the node is not in its own list');
  }
  return record;
}

export function authorityOf({ ca, caKey }: ClusterRecord): Authority | undefined {
  return caKey === null ? undefined : { certificate: ca, privateKey: caKey };
}
