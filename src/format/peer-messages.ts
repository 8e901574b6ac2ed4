/**
 * What daemons say to each other, in frames of frame.ts. Bodies are JSON with the keys below; a
 * newer daemon may send more of them. docs/formats/peer-messages.md lists them.
 */
import { encodeFrame, type Frame } from './frame.js';
import { flag, FormatError, listOf, object, orNull, text, whole, type Shape } from './shape.js';

/** Raised with every change that an older daemon would not understand. */
export const protocolVersion = 1;

/** Versions one apart work together: the newer speaks as the older does. */
export const protocolsMeet = (one: number, other: number): boolean => Math.abs(one - other) <= 1;

/** Also of what a node is called in commands and certificates. */
export const nodeNamePattern = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$/;
export const idPattern = /^[0-9a-f]{16}$/;

/** Live ones; a heartbeat goes from each to each. */
export const membersMax = 128;
/** Removed ones are remembered for good, so that what they held is never believed again. */
export const recordsMax = 2048;

export interface Member {
  /** For good: a node that comes back after its removal is another one. */
  readonly id: string;
  readonly name: string;
  /** HOST:PORT, where it listens. */
  readonly address: string;
  readonly zone: string | null;
  /** It holds the CA's key: lets nodes join, and renews certificates. */
  readonly signs: boolean;
  /** Raised by the node itself with each change. */
  readonly revision: number;
  readonly removed: boolean;
}

/** What a node tells of itself. */
export interface NodeFacts {
  readonly version: string;
  readonly kernel: string;
  readonly memoryBytes: number;
  /** What replicas may still take of it. */
  readonly memoryForReplicasBytes: number;
  readonly groups: number;
}

export interface Hello {
  readonly cluster: string;
  readonly id: string;
  readonly name: string;
  readonly protocol: number;
  readonly version: string;
  /** Random, of this run of the daemon. */
  readonly run: string;
}

export interface Heartbeat {
  readonly sequence: number;
  /** The last that came from the other side, 0 for none, and how long ago. */
  readonly echo: number;
  readonly heldUs: number;
  /** Of the sender's list of nodes. */
  readonly digest: string;
}

/** The last frame of a connection: why there will be no more. */
export interface Refusal {
  readonly code: 'protocol' | 'cluster' | 'identity' | 'removed' | 'certificate' | 'token' | 'busy';
  readonly why: string;
}

export interface JoinRequest {
  readonly token: string;
  /** HMAC-SHA256, base64; see join.ts. */
  readonly proof: string;
  readonly protocol: number;
  readonly version: string;
  readonly name: string;
  readonly zone: string | null;
  /** Where it is going to listen. */
  readonly address: string;
  /** PKCS#10, base64 of DER. */
  readonly request: string;
}

export interface Joined {
  readonly cluster: string;
  readonly member: Member;
  readonly certificate: string;
  readonly members: readonly Member[];
  /** Of the page stores, base64. */
  readonly storeKey: string;
  /** PEM, for a node that is to sign as well; certificates live so long. */
  readonly caKey: string | null;
  readonly certificateLifeMs: number;
}

/** From the primary's node: keep a replica of this. */
export interface PrepareReplica {
  readonly request: number;
  readonly name: string;
  readonly generation: number;
  /** The group's options, as JSON. */
  readonly spec: string;
  /** The output file is where the daemon has such files. */
  readonly ownOutput: boolean;
  /** What the group needs of the node (docs/formats/requirements.md), base64. */
  readonly requirements: string;
  /** What was sent for this replica because it had been wanted. */
  readonly shipped: readonly ShippedFile[];
}

export interface ShippedFile {
  /** Position in the files of the requirements. */
  readonly file: number;
  /** Of its content, hexadecimal. */
  readonly sha256: string;
}

export interface ReplicaPrepared {
  readonly request: number;
  /** Why not; null: it is expected, at this port and with this token. */
  readonly refusal: string | null;
  readonly port: number;
  readonly token: string;
  /** Files of the requirements that have to be shipped first; then it is not expected yet. */
  readonly wants: readonly number[];
}

/** A file comes. */
export interface ShipFile {
  readonly request: number;
  /** Of the group that it is for. */
  readonly name: string;
  readonly generation: number;
  readonly sha256: string;
  readonly sizeBytes: number;
}

export interface ShipChunk {
  readonly request: number;
  /** Request that announced the file. */
  readonly transfer: number;
  /** What comes next of it, base64. */
  readonly data: string;
  readonly last: boolean;
}

/** Answers either. */
export interface FileTaken {
  readonly request: number;
  readonly why: string | null;
  /** Announced: it is not here yet. */
  readonly wanted: boolean;
}

/** The group is over, or not protected there any more. */
export interface DropReplica {
  readonly name: string;
  /** And those before. */
  readonly generation: number;
}

/** Who of a group's replicas may be promoted. */
export interface ReplicaRecord {
  readonly name: string;
  /** Of this protection of it, random. */
  readonly id: string;
  /** Counts the protections under that name. */
  readonly protection: number;
  readonly generation: number;
  /** Within the protection; raised by the primary's node with each change. */
  readonly revision: number;
  /** Name of the primary's node. */
  readonly node: string;
  /** Names of nodes. */
  readonly inSync: readonly string[];
  /** There are none any more; kept, so that nobody brings an older one back. */
  readonly over: boolean;
}

/** What the sender knows of groups, whosever they are; what is newer counts. */
export interface ReplicaRecords {
  /** 0: no answer is wanted. */
  readonly request: number;
  readonly records: readonly ReplicaRecord[];
}

export interface RecordsTaken {
  readonly request: number;
  /** They are not on its disk; null: they are. */
  readonly why: string | null;
}

/** Before one that is kept there is promoted. */
export interface AskRecord {
  readonly request: number;
  /** Of the group. */
  readonly name: string;
}

export interface RecordTold {
  readonly request: number;
  /** What that node knows; none, where it knows nothing. */
  readonly records: readonly ReplicaRecord[];
}

export interface AskPrimary {
  readonly request: number;
  readonly name: string;
}

export interface PrimaryState {
  readonly request: number;
  /** Its process runs there. */
  readonly running: boolean;
}

const pemBytesMax = 8192;
const pem = text(pemBytesMax);
const base64 = (lengthMax: number): Shape<string> => text(lengthMax, /^[A-Za-z0-9+/]*={0,2}$/);
const name = text(63, nodeNamePattern);
const id = text(16, idPattern);
const version = text(64);
const address = text(270);
const why = text(1000);

export const memberShape: Shape<Member> = object<Member>({
  ...{ id, name, address, zone: orNull(name), signs: flag },
  ...{ revision: whole(), removed: flag },
});
export const membersShape = listOf(memberShape, recordsMax);

const refusalCode: Shape<Refusal['code']> = (value, where) => {
  const codes = ['protocol', 'cluster', 'identity', 'removed', 'certificate', 'token', 'busy'];
  if (!codes.includes(value as string)) throw new FormatError(`${where} is no code`);
  return value as Refusal['code'];
};

const portMax = 65_535;
/** With _ before it: of a replica that is tried out. */
const groupName = text(64, /^_?[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$/);
/** Of a group's options as JSON. */
const specBytesMax = 64 * 1024;
const sha256 = text(64, /^[0-9a-f]{64}$/);
const filesMax = 4096;
const chunkTextMax = 512 * 1024;
/** Of what a group needs of a node, as bytes: some ten thousand files. */
export const requirementsBytesMax = 1024 * 1024;

/** Groups with replicas, of all nodes. */
export const replicaRecordsMax = 10_000;
const homesMax = 16;
const replicaRecord = object<ReplicaRecord>({
  ...{ name: groupName, id, protection: whole(1), generation: whole(1), revision: whole(1) },
  node: name,
  ...{ inSync: listOf(name, homesMax), over: flag },
});
export const recordsShape = listOf(replicaRecord, replicaRecordsMax);

const replicaShapes = {
  prepareReplica: object<PrepareReplica>({
    ...{ request: whole(1), name: groupName, generation: whole(1), spec: text(specBytesMax) },
    ownOutput: flag,
    requirements: base64(Math.ceil(requirementsBytesMax / 3) * 4),
    shipped: listOf(object<ShippedFile>({ file: whole(), sha256 }), filesMax),
  }),
  replicaPrepared: object<ReplicaPrepared>({
    ...{ request: whole(1), refusal: orNull(why), port: whole(0, portMax), token: text(64) },
    wants: listOf(whole(), filesMax),
  }),
  shipFile: object<ShipFile>({
    ...{ request: whole(1), name: groupName, generation: whole(1), sha256, sizeBytes: whole() },
  }),
  shipChunk: object<ShipChunk>({
    ...{ request: whole(1), transfer: whole(1), data: base64(chunkTextMax), last: flag },
  }),
  fileTaken: object<FileTaken>({ request: whole(1), why: orNull(why), wanted: flag }),
  dropReplica: object<DropReplica>({ name: groupName, generation: whole(1) }),
  replicaRecords: object<ReplicaRecords>({ request: whole(), records: recordsShape }),
  recordsTaken: object<RecordsTaken>({ request: whole(1), why: orNull(why) }),
  askRecord: object<AskRecord>({ request: whole(1), name: groupName }),
  recordTold: object<RecordTold>({ request: whole(1), records: recordsShape }),
  askPrimary: object<AskPrimary>({ request: whole(1), name: groupName }),
  primaryState: object<PrimaryState>({ request: whole(1), running: flag }),
} as const;

const shapes = {
  ...replicaShapes,
  hello: object<Hello>({
    ...{ cluster: id, id, name, protocol: whole(1, 65_535), version, run: id },
  }),
  refusal: object<Refusal>({ code: refusalCode, why }),
  heartbeat: object<Heartbeat>({
    ...{ sequence: whole(1), echo: whole(), heldUs: whole(), digest: text(64) },
  }),
  facts: object<NodeFacts>({
    ...{ version, kernel: text(128), memoryBytes: whole() },
    ...{ memoryForReplicasBytes: whole(), groups: whole(0, 1_000_000) },
  }),
  members: object<{ members: readonly Member[] }>({ members: membersShape }),
  renew: object<{ request: string }>({ request: base64(pemBytesMax) }),
  renewed: object<{ certificate: string }>({ certificate: pem }),
  joinOffer: object<{ ca: string }>({ ca: pem }),
  joinRequest: object<JoinRequest>({
    ...{ token: text(8, /^[0-9a-f]{8}$/), proof: base64(44), protocol: whole(1, 65_535), version },
    ...{ name, zone: orNull(name), address, request: base64(pemBytesMax) },
  }),
  joined: object<Joined>({
    ...{ cluster: id, member: memberShape, certificate: pem, members: membersShape },
    ...{ storeKey: base64(44), caKey: orNull(pem), certificateLifeMs: whole(1) },
  }),
} as const;

type Kind = keyof typeof shapes;
type BodyOf<K extends Kind> = ReturnType<(typeof shapes)[K]>;

/** A message is its body with the kind beside it. */
export type PeerMessage = { [K in Kind]: { readonly kind: K; readonly body: BodyOf<K> } }[Kind];

const numbers: Readonly<Record<Kind, number>> = {
  ...{ hello: 1, refusal: 2, heartbeat: 3, facts: 4, members: 5, renew: 6, renewed: 7 },
  ...{ joinOffer: 16, joinRequest: 17, joined: 18 },
  ...{ prepareReplica: 32, replicaPrepared: 33, dropReplica: 34 },
  ...{ askPrimary: 35, primaryState: 36, shipFile: 37, shipChunk: 38, fileTaken: 39 },
  ...{ replicaRecords: 40, recordsTaken: 41, askRecord: 42, recordTold: 43 },
};
const kinds = new Map(Object.entries(numbers).map(([kind, number]) => [number, kind as Kind]));

/** What is about replicas, and not about the cluster itself. */
export type ReplicaMessage = Extract<PeerMessage, { kind: keyof typeof replicaShapes }>;

export const isReplicaMessage = (message: PeerMessage): message is ReplicaMessage =>
  Object.hasOwn(replicaShapes, message.kind);

/** Bodies before the other side is known, and after. */
export const bodyBytesMax = { stranger: 32 * 1024, peer: 2 * 1024 * 1024 } as const;

export function encodeMessage({ kind, body }: PeerMessage): Buffer {
  return encodeFrame(numbers[kind], Buffer.from(JSON.stringify(body)));
}

/** Throws FormatError. */
export function decodeMessage({ type, body }: Frame): PeerMessage {
  const kind = kinds.get(type);
  if (kind === undefined) throw new FormatError(`there is no message ${type}`);
  let value: unknown;
  try {
    value = JSON.parse(body.toString('utf8'));
  } catch {
    throw new FormatError(`the body of ${kind} is not JSON`);
  }
  return { kind, body: shapes[kind](value, kind) } as PeerMessage;
}
