/**
 * What travels over the local socket about the cluster (schema.ts has the rest and the rules):
 *
 *   POST /v1/cluster/init                InitRequest -> InitReport, for root alone, as all but the last
 *   POST /v1/cluster/token               TokenRequest -> TokenReport
 *   POST /v1/cluster/join                JoinClusterRequest -> JoinReport
 *   POST /v1/nodes/NAME/remove           -> NodesReport
 *   POST /v1/key                         KeyImportRequest -> KeyImportReport
 *   GET  /v1/nodes                       -> NodesReport
 */
import { checkFields, isInteger, isText, type Check, type Fields } from './checks.js';

/** What a node says of itself when it enters a cluster. */
interface NodeRequest {
  /** Absent is the machine's. */
  readonly name?: string | undefined;
  /** HOST:PORT; absent is the machine's first address that is not its own loopback. */
  readonly listen?: string | undefined;
  readonly zone?: string | undefined;
}

export interface InitRequest extends NodeRequest {
  /** Of node certificates. */
  readonly certificateLifeMs?: number | undefined;
  /** A key of page stores that exist already, as init or key export printed it. */
  readonly recover?: string | undefined;
}

export interface InitReport {
  readonly cluster: string;
  readonly node: NodeStatus;
  /** Shown here and never again. */
  readonly recoveryKey: string;
}

export interface TokenRequest {
  readonly ttlMs?: number | undefined;
  /** The node is to hold the CA's key as well. */
  readonly signs?: boolean | undefined;
}

export interface TokenReport {
  readonly token: string;
  /** Of the node that made it, and takes it. */
  readonly address: string;
  readonly ttlMs: number;
}

export interface JoinClusterRequest extends NodeRequest {
  readonly token: string;
  /** HOST[:PORT] of the node that made the token. */
  readonly address: string;
}

export interface JoinReport {
  readonly cluster: string;
  readonly node: NodeStatus;
  readonly nodes: number;
}

export interface NodeStatus {
  readonly name: string;
  readonly id: string;
  readonly address: string;
  readonly zone: string | null;
  /** Holds the CA's key: makes tokens, renews certificates. */
  readonly signs: boolean;
  readonly state: 'self' | 'up' | 'unreachable' | 'awaited' | 'removed';
  /** Why it is not up. */
  readonly reason: string | null;
  readonly version: string | null;
  readonly kernel: string | null;
  readonly roundTripUs: number | null;
  readonly memoryBytes: number | null;
  readonly memoryForReplicasBytes: number | null;
  readonly groups: number | null;
}

export interface NodesReport {
  readonly cluster: string;
  /** The one that answers. */
  readonly node: string;
  /** End of its certificate, ISO 8601. */
  readonly certificateUntil: string;
  readonly nodes: readonly NodeStatus[];
  readonly warnings: readonly string[];
}

export interface KeyImportRequest {
  readonly key: string;
}

export interface KeyImportReport {
  /** False: that very key was there already. */
  readonly imported: boolean;
}

/** What holds where a request does not say. */
export const clusterDefaults = {
  port: 7420,
  ttlMs: 600_000,
  certificateLifeMs: 90 * 24 * 3_600_000,
} as const;

const matches =
  (lengthMax: number, pattern: RegExp): Check<string> =>
  (value): value is string =>
    isText(lengthMax)(value) && pattern.test(value);

const label = [
  matches(63, /^[A-Za-z0-9][A-Za-z0-9_.-]*$/),
  'up to 63 letters, digits, dots, dashes or underscores, the first a letter or digit',
] as const;
const address = [matches(270, /^[^\s/@]+$/), 'an address as HOST:PORT or [HOST]:PORT'] as const;
const key = [isText(200), 'a key as init or key export printed it'] as const;
const isFlag: Check<boolean> = (value): value is boolean => typeof value === 'boolean';
const hour = 3_600_000;

const nodeFields: Fields<NodeRequest> = { name: label, listen: address, zone: label };
const initFields: Fields<InitRequest> = {
  ...nodeFields,
  recover: key,
  certificateLifeMs: [isInteger(5000, 87_600 * hour), 'between 5 s and 87600 h'],
};
const tokenFields: Fields<TokenRequest> = {
  ttlMs: [isInteger(1000, 168 * hour), 'between 1 s and 168 h'],
  signs: [isFlag, 'true or false'],
};
const joinFields: Fields<JoinClusterRequest> = {
  ...nodeFields,
  address,
  token: [isText(200), 'a token as replpage token printed it'],
};

/** All of these throw ERR_BAD_REQUEST that names the field. */
export const checkInitRequest = (value: unknown): InitRequest => checkFields(value, initFields, []);
export const checkTokenRequest = (value: unknown): TokenRequest =>
  checkFields(value, tokenFields, []);
export const checkJoinRequest = (value: unknown): JoinClusterRequest =>
  checkFields(value, joinFields, ['token', 'address']);
export const checkKeyImportRequest = (value: unknown): KeyImportRequest =>
  checkFields<KeyImportRequest>(value, { key }, ['key']);
