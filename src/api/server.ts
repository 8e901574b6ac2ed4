/**
 * The daemon's local HTTP API on a Unix socket (schema.ts has the routes). It knows who calls from
 * the socket's peer credentials, checks what is asked, and leaves the rest to `DaemonControl`.
 * node:http is all it takes: a dozen routes, no parser or schema library inside a root daemon.
 */
import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { ReplicationError } from '../base/errors.js';
import type { Log } from '../base/log.js';
import { answerCluster, type ClusterControl } from './cluster-routes.js';
import { answerMove, type MovesControl } from './moves-routes.js';
import { toProblem } from './problem.js';
import {
  checkProtectRequest,
  checkRemovalRequest,
  checkRestoreRequest,
  namePattern,
  type CheckpointReport,
  type EventRecord,
  type EvictReport,
  type GroupStatus,
  type InspectedProcess,
  type KernelReport,
  type KeyReport,
  type PromoteRequest,
  type ProtectReport,
  type ProtectRequest,
  type RemovalReport,
  type RemovalRequest,
  type RestoreReport,
  type RestoreRequest,
  type StatusReport,
} from './schema.js';

/** Who is at the other end of the socket, as the kernel says. */
export interface Caller {
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
}

/** What the API can ask for. Each checks for itself what the caller may do. */
export interface DaemonControl {
  status(caller: Caller): StatusReport;
  group(caller: Caller, name: string): Promise<GroupStatus>;
  /** Gives up, and lets the process go, when `signal` aborts before the first epoch. */
  protect(
    caller: Caller,
    request: ProtectRequest,
    watch: { onProgress(bytes: number, bytesTotal: number): void; signal: AbortSignal },
  ): Promise<ProtectReport>;
  promote(caller: Caller, name: string, how: PromoteRequest): Promise<GroupStatus>;
  unprotect(caller: Caller, name: string): Promise<GroupStatus>;
  detach(caller: Caller, name: string): Promise<GroupStatus>;
  /** Where the pages of a group's replica are. */
  pages(caller: Caller, name: string): Promise<readonly InspectedProcess[]>;
  /** Makes a group's replica as cold as it may be. */
  evict(caller: Caller, name: string): Promise<EvictReport>;
  checkpoint(caller: Caller, name: string, keep: boolean): Promise<CheckpointReport>;
  removeCheckpoints(caller: Caller, request: RemovalRequest): Promise<RemovalReport>;
  restore(caller: Caller, request: RestoreRequest): Promise<RestoreReport>;
  key(caller: Caller): KeyReport;
  events(caller: Caller, after: number): readonly EventRecord[];
  onEvent(caller: Caller, listener: (event: EventRecord) => void): () => void;
  kernel(): KernelReport;
}

export interface ServerOptions {
  readonly control: DaemonControl;
  readonly cluster: ClusterControl;
  readonly moves: MovesControl;
  readonly credentials: (fd: number) => Caller;
  readonly log: Log;
}

const bodyBytesMax = 64 * 1024;
const connectionsMax = 256;
/** A follower that reads this little is let go rather than buffered for. */
const unreadBytesMax = 1024 * 1024;

interface Request {
  readonly caller: Caller;
  readonly url: URL;
  readonly incoming: IncomingMessage;
  readonly response: ServerResponse;
}

export function createApiServer(options: ServerOptions): Server {
  const server = createServer((incoming, response) => {
    answer(options, incoming, response).catch((error: unknown) => {
      const problem = toProblem(error);
      options.log.debug({ code: problem.code, detail: problem.detail }, 'request failed');
      if (response.headersSent) response.destroy();
      else sendJson(response, problem.status, problem, 'application/problem+json');
    });
  });
  server.maxConnections = connectionsMax;
  return server;
}

async function answer(
  options: ServerOptions,
  incoming: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const caller = options.credentials(socketFd(incoming.socket));
  const { url, parts } = parseTarget(incoming.url ?? '/');
  const request = { caller, url, incoming, response };
  const { control } = options;
  const [version, ...path] = parts;
  const route = `${incoming.method} ${path[0] ?? ''}`;
  if (version !== 'v1') throw noRoute(url);
  if (route === 'GET status' && path.length === 1) {
    return sendJson(response, 200, control.status(caller));
  }
  if (route === 'GET kernel' && path.length === 1) {
    return sendJson(response, 200, control.kernel());
  }
  if (route === 'GET key' && path.length === 1) return sendJson(response, 200, control.key(caller));
  if (route === 'GET events' && path.length === 1) return sendEvents(control, request);
  if (route === 'POST groups' && path.length === 1) return protect(control, request);
  if (route === 'POST checkpoints' && path[1] === 'remove' && path.length === 2) {
    const body = checkRemovalRequest(await readJson(incoming));
    return sendJson(response, 200, await control.removeCheckpoints(caller, body));
  }
  if (route === 'POST restore' && path.length === 1) {
    const body = checkRestoreRequest(await readJson(incoming));
    return sendJson(response, 200, await control.restore(caller, body));
  }
  if (route === 'GET groups' && path.length === 2) {
    return sendJson(response, 200, await control.group(caller, groupName(path[1])));
  }
  if (route === 'GET groups' && path.length === 3 && path[2] === 'pages') {
    return sendJson(response, 200, await control.pages(caller, groupName(path[1])));
  }
  const moved =
    incoming.method === 'POST'
      ? await answerMove(options.moves, caller, path, url.searchParams)
      : undefined;
  if (moved !== undefined) return sendJson(response, 200, moved);
  if (route === 'POST groups' && path.length === 3) {
    const name = groupName(path[1]);
    return sendJson(response, 200, await act(control, request, name, path[2]));
  }
  const body = (): Promise<unknown> => readJson(incoming);
  const done = await answerCluster(options.cluster, caller, route, path.slice(1), body);
  if (done !== undefined) return sendJson(response, 200, done);
  throw noRoute(url);
}

function parseTarget(target: string): { url: URL; parts: string[] } {
  try {
    const url = new URL(target, 'http://replpage');
    return { url, parts: url.pathname.split('/').slice(1).map(decodeURIComponent) };
  } catch {
    throw new ReplicationError('ERR_BAD_REQUEST', `"${target}" is no address`);
  }
}

function act(
  control: DaemonControl,
  { caller, url }: Request,
  name: string,
  action: string | undefined,
): Promise<GroupStatus | EvictReport | CheckpointReport> {
  switch (action) {
    case 'promote':
      return control.promote(caller, name, {
        to: url.searchParams.get('to') ?? undefined,
        force: url.searchParams.get('force') === '1',
      });
    case 'unprotect':
      return control.unprotect(caller, name);
    case 'evict':
      return control.evict(caller, name);
    case 'checkpoint':
      return control.checkpoint(caller, name, url.searchParams.get('keep') === '1');
    case 'detach':
      return control.detach(caller, name);
    default:
      throw new ReplicationError('ERR_BAD_REQUEST', `there is no action "${action}"`);
  }
}

async function protect(control: DaemonControl, request: Request): Promise<void> {
  const { caller, incoming, response } = request;
  const body = checkProtectRequest(await readJson(incoming));
  const gone = new AbortController();
  response.on('close', () => gone.abort());
  startLines(response);
  try {
    const report = await control.protect(caller, body, {
      // A client that does not read loses lines of progress, nothing else.
      onProgress: (bytes, bytesTotal) => {
        if (response.writableLength > unreadBytesMax) return;
        writeLine(response, { type: 'progress', bytes, bytesTotal });
      },
      signal: gone.signal,
    });
    writeLine(response, { type: 'done', report });
  } catch (error) {
    writeLine(response, { type: 'error', problem: toProblem(error) });
  }
  response.end();
}

async function sendEvents(control: DaemonControl, request: Request): Promise<void> {
  const { caller, url, response } = request;
  const after = Number(url.searchParams.get('after') ?? 0);
  if (!Number.isSafeInteger(after) || after < 0) {
    throw new ReplicationError('ERR_BAD_REQUEST', 'after must be the id of an event, or 0');
  }
  startLines(response);
  for (const event of control.events(caller, after)) writeLine(response, event);
  if (url.searchParams.get('follow') === '1') {
    const stop = control.onEvent(caller, (event) => {
      if (response.writableLength > unreadBytesMax) response.destroy();
      else writeLine(response, event);
    });
    if (!response.closed) await once(response, 'close');
    stop();
  }
  response.end();
}

function startLines(response: ServerResponse): void {
  response.writeHead(200, { 'content-type': 'application/x-ndjson' });
  response.flushHeaders();
}

function writeLine(response: ServerResponse, line: unknown): void {
  if (!response.writableEnded && !response.destroyed) response.write(`${JSON.stringify(line)}\n`);
}

function sendJson(
  response: ServerResponse,
  status: number,
  body: unknown,
  type = 'application/json',
): void {
  response.writeHead(status, { 'content-type': type });
  response.end(`${JSON.stringify(body)}\n`);
}

async function readJson(incoming: IncomingMessage): Promise<unknown> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of incoming as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > bodyBytesMax) {
      throw new ReplicationError('ERR_BAD_REQUEST', `the request is over ${bodyBytesMax} bytes`);
    }
    chunks.push(chunk);
  }
  try {
    return JSON.parse(Buffer.concat(chunks).toString('utf8'));
  } catch {
    throw new ReplicationError('ERR_BAD_REQUEST', 'the request is not JSON');
  }
}

function groupName(text: string | undefined): string {
  if (text === undefined || !namePattern.test(text)) {
    throw new ReplicationError('ERR_BAD_REQUEST', `"${text}" is no name of a group`);
  }
  return text;
}

function noRoute(url: URL): ReplicationError {
  return new ReplicationError('ERR_BAD_REQUEST', `there is no ${url.pathname} here`);
}

/** Node.js has no public way to a socket's descriptor. */
function socketFd(socket: Socket): number {
  const handle = (socket as unknown as { readonly _handle?: { readonly fd?: number } })._handle;
  const fd = handle?.fd;
  if (fd === undefined || fd < 0) {
    throw new ReplicationError('ERR_DENIED', 'the caller has gone before it could be identified');
  }
  return fd;
}
