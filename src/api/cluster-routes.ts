/** The part of the local API that is about the cluster; cluster-schema.ts has the routes. */
import type {
  InitReport,
  InitRequest,
  JoinClusterRequest,
  JoinReport,
  KeyImportReport,
  KeyImportRequest,
  NodesReport,
  TokenReport,
  TokenRequest,
} from './cluster-schema.js';
import {
  checkInitRequest,
  checkJoinRequest,
  checkKeyImportRequest,
  checkTokenRequest,
} from './cluster-schema.js';
import type { Caller } from './server.js';

/** Each checks for itself what the caller may do. */
export interface ClusterControl {
  init(caller: Caller, request: InitRequest): Promise<InitReport>;
  join(caller: Caller, request: JoinClusterRequest): Promise<JoinReport>;
  token(caller: Caller, request: TokenRequest): TokenReport;
  nodes(): NodesReport;
  removeNode(caller: Caller, name: string): Promise<NodesReport>;
  importKey(caller: Caller, request: KeyImportRequest): Promise<KeyImportReport>;
}

/** `route` is the method and the first part of the path; undefined when it is none of these. */
export async function answerCluster(
  cluster: ClusterControl,
  caller: Caller,
  route: string,
  rest: readonly string[],
  body: () => Promise<unknown>,
): Promise<object | undefined> {
  const [name, action] = rest;
  switch (`${route} ${rest.length}`) {
    case 'GET nodes 0':
      return cluster.nodes();
    case 'POST nodes 2':
      return action === 'remove' ? cluster.removeNode(caller, name ?? '') : undefined;
    case 'POST key 0':
      return cluster.importKey(caller, checkKeyImportRequest(await body()));
    case 'POST cluster 1':
      break;
    default:
      return undefined;
  }
  switch (name) {
    case 'init':
      return cluster.init(caller, checkInitRequest(await body()));
    case 'join':
      return cluster.join(caller, checkJoinRequest(await body()));
    case 'token':
      return cluster.token(caller, checkTokenRequest(await body()));
    default:
      return undefined;
  }
}
