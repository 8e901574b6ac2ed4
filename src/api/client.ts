/** Talks to the daemon. Every failure is a ReplicationError with what to do about it. */
import { statSync } from 'node:fs';
import { request as httpRequest, type IncomingMessage } from 'node:http';
import { describe, hasCode, isSystemError, ReplicationError } from '../base/errors.js';
import type {
  InitReport,
  InitRequest,
  JoinClusterRequest,
  JoinReport,
  KeyImportReport,
  NodesReport,
  TokenReport,
  TokenRequest,
} from './cluster-schema.js';
import type { DrainReport, DrillReport } from './moves-schema.js';
import { fromProblem } from './problem.js';
import type {
  CheckpointReport,
  EventRecord,
  EvictReport,
  GroupStatus,
  InspectedProcess,
  KernelReport,
  KeyReport,
  PromoteRequest,
  ProtectLine,
  ProtectReport,
  ProtectRequest,
  RemovalReport,
  RemovalRequest,
  RestoreReport,
  RestoreRequest,
  StatusReport,
} from './schema.js';

export type GroupAction = 'promote' | 'unprotect' | 'detach';

export class ApiClient {
  readonly socketPath: string;

  constructor(socketPath: string) {
    this.socketPath = socketPath;
  }

  async status(): Promise<StatusReport> {
    return (await this.#json('GET', '/v1/status')) as StatusReport;
  }

  async group(name: string): Promise<GroupStatus> {
    return (await this.#json('GET', `/v1/groups/${encodeURIComponent(name)}`)) as GroupStatus;
  }

  async pages(name: string): Promise<readonly InspectedProcess[]> {
    const path = `/v1/groups/${encodeURIComponent(name)}/pages`;
    return (await this.#json('GET', path)) as InspectedProcess[];
  }

  async kernel(): Promise<KernelReport> {
    return (await this.#json('GET', '/v1/kernel')) as KernelReport;
  }

  async act(name: string, action: GroupAction): Promise<GroupStatus> {
    const path = `/v1/groups/${encodeURIComponent(name)}/${action}`;
    return (await this.#json('POST', path)) as GroupStatus;
  }

  async promote(name: string, { to, force }: PromoteRequest): Promise<GroupStatus> {
    const query = new URLSearchParams({ ...(to && { to }), ...(force && { force: '1' }) });
    const path = `/v1/groups/${encodeURIComponent(name)}/promote?${query.toString()}`;
    return (await this.#json('POST', path)) as GroupStatus;
  }

  async drill(name: string, on: string | undefined): Promise<DrillReport> {
    const query = on === undefined ? '' : `?on=${encodeURIComponent(on)}`;
    const path = `/v1/groups/${encodeURIComponent(name)}/drill${query}`;
    return (await this.#json('POST', path)) as DrillReport;
  }

  async move(name: string, to: string): Promise<GroupStatus> {
    const path = `/v1/groups/${encodeURIComponent(name)}/move`;
    return (await this.#json('POST', `${path}?to=${encodeURIComponent(to)}`)) as GroupStatus;
  }

  async drain(node: string): Promise<DrainReport> {
    const path = `/v1/nodes/${encodeURIComponent(node)}/drain`;
    return (await this.#json('POST', path)) as DrainReport;
  }

  async evict(name: string): Promise<EvictReport> {
    const path = `/v1/groups/${encodeURIComponent(name)}/evict`;
    return (await this.#json('POST', path)) as EvictReport;
  }

  async checkpoint(name: string, keep: boolean): Promise<CheckpointReport> {
    const path = `/v1/groups/${encodeURIComponent(name)}/checkpoint${keep ? '?keep=1' : ''}`;
    return (await this.#json('POST', path)) as CheckpointReport;
  }

  async removeCheckpoints(body: RemovalRequest): Promise<RemovalReport> {
    return (await this.#json('POST', '/v1/checkpoints/remove', body)) as RemovalReport;
  }

  async restore(body: RestoreRequest): Promise<RestoreReport> {
    return (await this.#json('POST', '/v1/restore', body)) as RestoreReport;
  }

  async initCluster(body: InitRequest): Promise<InitReport> {
    return (await this.#json('POST', '/v1/cluster/init', body)) as InitReport;
  }

  async joinCluster(body: JoinClusterRequest): Promise<JoinReport> {
    return (await this.#json('POST', '/v1/cluster/join', body)) as JoinReport;
  }

  async token(body: TokenRequest): Promise<TokenReport> {
    return (await this.#json('POST', '/v1/cluster/token', body)) as TokenReport;
  }

  async nodes(): Promise<NodesReport> {
    return (await this.#json('GET', '/v1/nodes')) as NodesReport;
  }

  async removeNode(name: string): Promise<NodesReport> {
    const path = `/v1/nodes/${encodeURIComponent(name)}/remove`;
    return (await this.#json('POST', path)) as NodesReport;
  }

  async importKey(key: string): Promise<KeyImportReport> {
    return (await this.#json('POST', '/v1/key', { key })) as KeyImportReport;
  }

  async key(): Promise<KeyReport> {
    return (await this.#json('GET', '/v1/key')) as KeyReport;
  }

  /** Resolves when the first epoch is committed; aborting lets the process go again. */
  async protect(
    body: ProtectRequest,
    watch: { onProgress(bytes: number, bytesTotal: number): void; signal?: AbortSignal },
  ): Promise<ProtectReport> {
    const response = await this.#send('POST', '/v1/groups', { body, signal: watch.signal });
    for await (const value of lines(response)) {
      const line = value as ProtectLine;
      if (line.type === 'progress') watch.onProgress(line.bytes, line.bytesTotal);
      if (line.type === 'done') return line.report;
      if (line.type === 'error') throw fromProblem(line.problem);
    }
    throw new ReplicationError('ERR_NO_DAEMON', 'the daemon ended before the first epoch', {
      advice: 'the process runs on unprotected; see the log of the daemon',
    });
  }

  async *events(options: {
    after: number;
    follow: boolean;
    signal?: AbortSignal;
  }): AsyncGenerator<EventRecord> {
    const path = `/v1/events?after=${options.after}${options.follow ? '&follow=1' : ''}`;
    const response = await this.#send('GET', path, { signal: options.signal });
    for await (const line of lines(response)) yield line as EventRecord;
    if (!options.follow || options.signal?.aborted === true) return;
    throw new ReplicationError('ERR_NO_DAEMON', `the daemon at ${this.socketPath} has ended`, {
      advice: 'its events end with it; follow those of the next one when it runs',
    });
  }

  async #json(method: string, path: string, body?: unknown): Promise<unknown> {
    const response = await this.#send(method, path, { body });
    return JSON.parse(await text(response));
  }

  /** Throws what the daemon answered when it is not a success. */
  async #send(
    method: string,
    path: string,
    options: { body?: unknown; signal?: AbortSignal | undefined },
  ): Promise<IncomingMessage> {
    const response = await this.#exchange(method, path, options).catch((error: unknown) => {
      throw this.#unreachable(error);
    });
    if (response.statusCode === 200) return response;
    let problem: unknown;
    try {
      problem = JSON.parse(await text(response));
    } catch {
      problem = { detail: `the daemon answered with status ${response.statusCode}` };
    }
    throw fromProblem(problem);
  }

  #exchange(
    method: string,
    path: string,
    options: { body?: unknown; signal?: AbortSignal | undefined },
  ): Promise<IncomingMessage> {
    const { body, signal } = options;
    return new Promise((resolve, reject) => {
      const outgoing = httpRequest({
        socketPath: this.socketPath,
        method,
        path,
        ...(signal ? { signal } : {}),
      });
      outgoing.on('response', resolve);
      outgoing.on('error', reject);
      outgoing.end(body === undefined ? undefined : JSON.stringify(body));
    });
  }

  #whoMay(): string {
    const group = statSync(this.socketPath, { throwIfNoEntry: false })?.gid ?? 0;
    if (group !== 0) return 'use sudo, or be a member of the group replpage (log in again after)';
    return (
      'use sudo; to do without, as root: groupadd --system replpage; usermod -aG replpage YOU; ' +
      'the daemon sees the group within seconds, you after the next login'
    );
  }

  #unreachable(error: unknown): unknown {
    if (hasCode(error, 'ENOENT') || hasCode(error, 'ECONNREFUSED')) {
      return new ReplicationError('ERR_NO_DAEMON', `no daemon answers at ${this.socketPath}`, {
        advice: 'start one as root: replpage daemon (or systemctl start replpaged)',
      });
    }
    if (hasCode(error, 'EACCES')) {
      return new ReplicationError('ERR_DENIED', `you may not talk to ${this.socketPath}`, {
        advice: this.#whoMay(),
      });
    }
    if (hasCode(error, 'EPIPE') || hasCode(error, 'ECONNRESET')) {
      return new ReplicationError('ERR_LIMIT', `the daemon at ${this.socketPath} hung up`, {
        advice: 'it has ended, or has too many clients: try again',
      });
    }
    if (!isSystemError(error) || error.name === 'AbortError') return error;
    const message = `cannot reach a daemon at ${this.socketPath}: ${describe(error)}`;
    return new ReplicationError('ERR_NO_DAEMON', message, {
      advice: 'see that --runtime-dir is the folder that the daemon was given',
    });
  }
}

async function text(response: IncomingMessage): Promise<string> {
  response.setEncoding('utf8');
  let whole = '';
  for await (const chunk of response as AsyncIterable<string>) whole += chunk;
  return whole;
}

/** One JSON value a line. A connection that breaks ends the lines, as a daemon that ends does. */
async function* lines(response: IncomingMessage): AsyncGenerator<unknown> {
  response.setEncoding('utf8');
  let rest = '';
  try {
    for await (const chunk of response as AsyncIterable<string>) {
      const whole = (rest + chunk).split('\n');
      rest = whole.pop() ?? '';
      for (const line of whole) if (line !== '') yield JSON.parse(line);
    }
  } catch (error) {
    if (!hasCode(error, 'ECONNRESET')) throw error;
  }
}
