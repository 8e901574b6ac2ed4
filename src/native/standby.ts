/** The native side of replicas on other nodes: where a group's is kept, and those kept for others. */
import type { NativeReplicaOptions } from './group.js';

/** What this node shows of itself, and whom it believes. All PEM. */
export interface NativeCredentials {
  readonly cluster: string;
  readonly certificate: string;
  readonly privateKey: string;
  readonly ca: string;
}

/** Another node, which expects the replica. */
export interface NativePlace {
  readonly host: string;
  readonly port: number;
  /** Id of the node. */
  readonly node: string;
  /** That it gave out, good for one connection. */
  readonly token: string;
  readonly credentials: NativeCredentials;
}

/** A file that the primary has mapped or open, as it is on this node. */
export interface PeerFile {
  readonly path: string;
  /** Of what was shipped; empty: the file at that path will do. */
  readonly copy: string;
  /** On the primary's node. */
  readonly inode: bigint;
  /** It is one file on both nodes. */
  readonly onNetwork: boolean;
  /** It was compared as one that the primary writes to. */
  readonly written: boolean;
}

/** A replica that another node is to bring. */
export interface ExpectedReplica extends NativeReplicaOptions {
  readonly token: string;
  /** Id of the primary's node. */
  readonly node: string;
  readonly peerFiles: readonly PeerFile[];
  /** It is tried out, and never promoted. */
  readonly drill: boolean;
}

/** `token` says of which replica. */
export type StandbyEvent = { readonly token: string } & (
  /** `made`: empty files and folders, in that order, for shipped files to appear at. */
  | { readonly type: 'opened'; readonly made: readonly string[] }
  | { readonly type: 'committed'; readonly epoch: number; readonly residentBytes: number }
  /** The connection is over; the replica stands by as it is. */
  | { readonly type: 'cutOff'; readonly why: string }
  | {
      readonly type: 'promoted';
      readonly epoch: number;
      readonly pid: number;
      readonly hostPid: number;
      readonly promoteUs: number;
      /** By the primary's node, which never runs it again. */
      readonly ordered: boolean;
      readonly keeperSocket: string;
    }
  | { readonly type: 'drained' }
  /** There is no replica any more. */
  | { readonly type: 'lost'; readonly why: string }
);

export interface NativeStandby {
  /** Where it listens. */
  port(): number;
  /** For connections to come. */
  renew(credentials: NativeCredentials): void;
  expect(replica: ExpectedReplica): void;
  /** False: there is none to promote. What comes of it is told by an event. */
  promote(token: string, keepFiles: boolean): boolean;
  /** One that was promoted runs on. */
  drop(token: string): void;
  /** Drops all. */
  stop(): void;
}
