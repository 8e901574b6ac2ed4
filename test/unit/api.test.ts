import { mkdtempSync, rmSync } from 'node:fs';
import { request as httpRequest } from 'node:http';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { ApiClient } from '../../src/api/client.js';
import type { ClusterControl } from '../../src/api/cluster-routes.js';
import type { MovesControl } from '../../src/api/moves-routes.js';
import type {
  InitReport,
  InitRequest,
  JoinClusterRequest,
  JoinReport,
  NodesReport,
  TokenRequest,
} from '../../src/api/cluster-schema.js';
import { fromProblem, toProblem } from '../../src/api/problem.js';
import {
  checkProtectRequest,
  checkRestoreRequest,
  type EventRecord,
  type GroupStatus,
  type RemovalRequest,
  type RestoreRequest,
} from '../../src/api/schema.js';
import { createApiServer, type Caller, type DaemonControl } from '../../src/api/server.js';
import { errorCodes, ReplicationError } from '../../src/base/errors.js';

const status = { name: 'web', state: 'protected', details: true, epoch: 7 } as GroupStatus;

/** A daemon that does what the test says, and remembers who asked. */
class ScriptedDaemon implements DaemonControl {
  readonly callers: Caller[] = [];
  readonly asked: string[] = [];
  readonly listeners = new Set<(event: EventRecord) => void>();
  readonly recorded: EventRecord[] = [];
  protect: DaemonControl['protect'] = (_caller, _request, watch) => {
    watch.onProgress(1, 2);
    watch.onProgress(2, 2);
    return Promise.resolve({
      group: status,
      copiedBytes: 2,
      copyUs: 1,
      warnings: ['mind'],
      takenOver: [],
    });
  };

  status(caller: Caller) {
    this.callers.push(caller);
    return {
      node: 'n',
      daemon: { pid: 1, uptimeMs: 2, version: '0', warnings: [] },
      groups: [status],
    };
  }
  group(_caller: Caller, name: string): Promise<GroupStatus> {
    if (name === 'web') return Promise.resolve(status);
    return Promise.reject(
      new ReplicationError('ERR_NO_GROUP', `there is no group ${name}`, { advice: 'look' }),
    );
  }
  promote = (_caller: Caller, name: string) => this.#act('promote', name);
  unprotect = (_caller: Caller, name: string) => this.#act('unprotect', name);
  detach = (_caller: Caller, name: string) => this.#act('detach', name);
  events = (_caller: Caller, after: number) => this.recorded.filter(({ id }) => id > after);
  onEvent(_caller: Caller, listener: (event: EventRecord) => void) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }
  kernel = () => ({ uffdWp: true });
  evict = async (caller: Caller, name: string) => ({
    ...{ group: await this.group(caller, name), evictedBytes: 4096, ms: 1 },
  });
  key = () => ({ key: 'k' });
  removeCheckpoints = (_caller: Caller, { from }: RemovalRequest) => {
    this.asked.push(`remove ${from}`);
    return Promise.resolve({ path: `/store/${from}`, ids: ['1'], freedBytes: 4096 });
  };
  checkpoint = (_caller: Caller, group: string, keep: boolean) =>
    Promise.resolve({
      ...{ group, id: keep ? 'kept' : 'alone', path: '/store/web', epoch: 7 },
      ...{ writtenBytes: 1, coldBytes: 2, storedBytes: 3, ms: 4 },
    });
  restore = async (caller: Caller, { from, id }: RestoreRequest) => ({
    ...{ group: await this.group(caller, from), id: id ?? 'newest', epoch: 7 },
    ...{ taken: '2026-01-01T00:00:00.000Z', ms: 5 },
  });
  pages = (_caller: Caller, name: string) =>
    Promise.resolve([{ pid: 7, command: name, mappings: [] }]);

  #act(action: string, name: string): Promise<GroupStatus> {
    this.asked.push(`${action} ${name}`);
    return Promise.resolve(status);
  }
}

const nodes: NodesReport = {
  ...{ cluster: '0123456789abcdef', node: 'a', certificateUntil: '', nodes: [], warnings: [] },
};

/** A cluster that tells what it was asked. */
class ScriptedCluster implements ClusterControl {
  readonly asked: unknown[] = [];
  init = (_caller: Caller, request: InitRequest) => this.#note(request, {} as InitReport);
  join = (_caller: Caller, request: JoinClusterRequest) => this.#note(request, {} as JoinReport);
  token = (_caller: Caller, { ttlMs = 1 }: TokenRequest) => ({ token: 't', address: 'h:1', ttlMs });
  nodes = () => nodes;
  removeNode = (_caller: Caller, name: string) => this.#note(name, nodes);
  importKey = (_caller: Caller, request: unknown) => this.#note(request, { imported: true });

  #note<T>(asked: unknown, answer: T): Promise<T> {
    this.asked.push(asked);
    return Promise.resolve(answer);
  }
}

class ScriptedMoves implements MovesControl {
  readonly asked: string[] = [];
  move = (_caller: Caller, name: string, to: string) => {
    this.asked.push(`move ${name} to ${to}`);
    return Promise.resolve(status);
  };
  drain = (_caller: Caller, node: string) => {
    this.asked.push(`drain ${node}`);
    return Promise.resolve({ node, moved: [{ name: 'web', to: 'b' }], left: [] });
  };
  drill = (_caller: Caller, name: string, on = 'where it is best') => {
    this.asked.push(`drill ${name} on ${on}`);
    const figures = { promoteUs: 900, comparedPages: 9, threads: 3, calls: 3, ms: 40 };
    return Promise.resolve({ name, node: 'b', epoch: 7, problem: null, ...figures });
  };
}

const silent = () => undefined;
const log = { debug: silent, info: silent, warn: silent, error: silent, child: () => log };

async function scene(t: Test) {
  const folder = mkdtempSync(join(tmpdir(), 'replpage-api-'));
  const path = join(folder, 'a.sock');
  const daemon = new ScriptedDaemon();
  const credentials = (fd: number): Caller => {
    if (fd < 0) throw new Error('no descriptor');
    return { pid: 42, uid: 1000, gid: 1000 };
  };
  const cluster = new ScriptedCluster();
  const moves = new ScriptedMoves();
  const server = createApiServer({ control: daemon, cluster, moves, credentials, log });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  t.teardown(() => {
    server.closeAllConnections();
    server.close();
    rmSync(folder, { recursive: true });
  });
  return { daemon, cluster, moves, path, server, client: new ApiClient(path) };
}

/** What a client that is not ours may send. */
function raw(
  path: string,
  method: string,
  url: string,
  body?: string,
): Promise<{ status: number; body: string }> {
  return new Promise((resolve, reject) => {
    const outgoing = httpRequest({ socketPath: path, method, path: url }, (response) => {
      let text = '';
      response.on('data', (chunk: Buffer) => (text += chunk.toString()));
      response.on('end', () => resolve({ status: response.statusCode ?? 0, body: text }));
    });
    outgoing.on('error', reject);
    outgoing.end(body);
  });
}

async function waitFor(what: string, condition: () => boolean): Promise<void> {
  const deadline = Date.now() + 5000;
  while (!condition()) {
    if (Date.now() > deadline) throw new Error(`waited in vain for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

t.test('a client sees status, and the daemon who asks', async (t) => {
  const { daemon, client } = await scene(t);
  t.match(await client.status(), { node: 'n', groups: [{ name: 'web', epoch: 7 }] });
  t.same(daemon.callers, [{ pid: 42, uid: 1000, gid: 1000 }]);
  t.match(await client.group('web'), { state: 'protected' });
  t.same(await client.kernel(), { uffdWp: true });
});

t.test('actions reach their group', async (t) => {
  const { daemon, client } = await scene(t);
  for (const action of ['promote', 'unprotect', 'detach'] as const) await client.act('web', action);
  t.same(daemon.asked, ['promote web', 'unprotect web', 'detach web']);
});

t.test('errors arrive with code, words, advice and refusals', async (t) => {
  const { daemon, client } = await scene(t);
  const noGroup = { code: 'ERR_NO_GROUP', message: 'there is no group x', advice: 'look' };
  await t.rejects(client.group('x'), noGroup);
  const refusals = [{ pid: 7, object: 'fd 3', kind: 'io_uring', why: 'cannot be copied' }];
  daemon.protect = () =>
    Promise.reject(new ReplicationError('ERR_REFUSED', 'cannot protect process 7', { refusals }));
  const refused = client.protect({ pid: 7 }, { onProgress: silent });
  await t.rejects(refused, { code: 'ERR_REFUSED', refusals });
});

t.test('protect streams its progress and ends with the report', async (t) => {
  const { client } = await scene(t);
  const seen: number[] = [];
  const report = await client.protect({ pid: 7 }, { onProgress: (bytes) => seen.push(bytes) });
  t.same(seen, [1, 2]);
  t.match(report, { group: { name: 'web' }, warnings: ['mind'] });
});

t.test('a client that goes away during protect makes the daemon give up', async (t) => {
  const { daemon, client } = await scene(t);
  let gaveUp = false;
  daemon.protect = (_caller, _request, { signal }) =>
    new Promise((_resolve, reject) => {
      signal.addEventListener('abort', () => {
        gaveUp = true;
        reject(new Error('given up'));
      });
    });
  const controller = new AbortController();
  const waiting = client.protect({ pid: 7 }, { onProgress: silent, signal: controller.signal });
  setTimeout(() => controller.abort(), 50);
  await t.rejects(waiting);
  await waitFor('giving up', () => gaveUp);
});

t.test('a daemon that dies during protect is told from a success', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'replpage-api-'));
  const path = join(folder, 'a.sock');
  const server = createServer((socket) => {
    socket.on('error', silent);
    socket.once('data', () => {
      socket.write('HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n');
      setTimeout(() => socket.destroy(), 20);
    });
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  t.teardown(() => {
    server.close();
    rmSync(folder, { recursive: true });
  });
  const cut = new ApiClient(path).protect({ pid: 7 }, { onProgress: silent });
  await t.rejects(cut, { code: 'ERR_NO_DAEMON' });
});

t.test('events come from the past and, followed, as they happen', async (t) => {
  const { daemon, client } = await scene(t);
  const event = (id: number): EventRecord => ({
    id,
    time: 'now',
    group: 'web',
    what: 'died',
    why: 'killed',
  });
  daemon.recorded.push(event(1), event(2));
  const past: number[] = [];
  for await (const { id } of client.events({ after: 1, follow: false })) past.push(id);
  t.same(past, [2]);
  const controller = new AbortController();
  const seen: number[] = [];
  const following = (async () => {
    const options = { after: 0, follow: true, signal: controller.signal };
    for await (const { id } of client.events(options)) seen.push(id);
  })();
  following.catch(silent);
  await waitFor('the listener', () => daemon.listeners.size === 1);
  for (const listener of daemon.listeners) listener(event(3));
  await waitFor('the third event', () => seen.length === 3);
  controller.abort();
  await waitFor('the listener to go', () => daemon.listeners.size === 0);
  t.same(seen, [1, 2, 3]);
});

t.test('who follows events learns that the daemon has ended', async (t) => {
  const { daemon, client, server, path } = await scene(t);
  const following = (async () => {
    for await (const event of client.events({ after: 0, follow: true })) t.fail(event.what);
  })();
  const ended = t.rejects(following, { code: 'ERR_NO_DAEMON', message: /a\.sock has ended/ });
  await waitFor('the listener', () => daemon.listeners.size === 1);
  server.closeAllConnections();
  await ended;
  const nowhere = new ApiClient(join(path, 'socket'));
  await t.rejects(nowhere.status(), { code: 'ERR_NO_DAEMON', message: /cannot reach .*ENOTDIR/ });
});

t.test('what is malformed is refused with a reason', async (t) => {
  const { path } = await scene(t);
  const cases: [string, string, string | undefined, RegExp][] = [
    ['GET', '/', undefined, /there is no/],
    ['GET', '/v2/status', undefined, /there is no/],
    ['DELETE', '/v1/groups/web', undefined, /there is no/],
    ['POST', '/v1/groups/web/explode', undefined, /no action/],
    ['POST', '/v1/groups/..%2Fweb/promote', undefined, /no name of a group/],
    ['GET', '/v1/groups/%E0%A4%A', undefined, /no address/],
    ['GET', '//', undefined, /no address/],
    ['GET', '/v1/events?after=-1', undefined, /after must be/],
    ['POST', '/v1/groups', 'nonsense', /not JSON/],
    ['POST', '/v1/groups', '[]', /not an object/],
    ['POST', '/v1/groups', '{}', /pid is missing/],
    ['POST', '/v1/groups', '{"pid": "7"}', /pid must be/],
    ['POST', '/v1/groups', `{"pid": 7, "name": "${'x'.repeat(70_000)}"}`, /over 65536 bytes/],
  ];
  for (const [method, url, body, why] of cases) {
    const answer = await raw(path, method, url, body);
    t.ok(answer.status >= 400 && answer.status < 500, `${method} ${url}: ${answer.status}`);
    t.match(answer.body, why);
  }
  const broken = await raw(path, 'GET', '/v1/groups/%zz');
  t.ok(broken.status >= 400, 'a broken escape');
});

t.test('a request to protect is checked field by field', (t) => {
  const good = {
    pid: 7,
    name: 'web-1.a_b',
    intervalMs: 100,
    overhead: 0.05,
    maxPauseMs: 50,
    attach: 'epochs',
    onExit: 'promote',
    files: 'keep',
    retries: 0,
    tracker: 'soft-dirty',
    stdio: null,
    pidfile: '/run/a.pid',
    onPromote: 'logger promoted',
    onFence: 'logger fenced',
    vip: '10.0.0.9/24@eth0',
  };
  t.same(checkProtectRequest(good), good);
  const bad: Record<string, unknown[]> = {
    pid: [0, -1, 1.5, 2 ** 31, null, '7', Number.NaN],
    name: ['', '-a', '../x', 'a b', 'x'.repeat(64), 7],
    intervalMs: [0, 9, 60_001, Number.POSITIVE_INFINITY, '100'],
    overhead: [0, 1.1, -1],
    maxPauseMs: [0, '50ms'],
    attach: ['sometimes', true],
    onExit: ['restart'],
    files: [''],
    retries: [-1, 1.5, 1001],
    tracker: ['damon'],
    stdio: ['relative', '/with\0nul', 7, ''],
    pidfile: [null, 'relative'],
    onPromote: ['', 'x'.repeat(9000), 'a\0b'],
    onFence: ['', 7],
    vip: [
      '',
      '10.0.0.9',
      '10.0.0.9/24',
      '10.0.0.9/24@',
      '10.0.0.9/24@a b',
      `::/0@${'x'.repeat(16)}`,
    ],
    __proto__x: [1],
    toString: [1],
  };
  for (const [key, values] of Object.entries(bad)) {
    for (const value of values) {
      const request = { ...good, [key]: value };
      t.throws(() => checkProtectRequest(request), { code: 'ERR_BAD_REQUEST', message: key });
    }
  }
  t.throws(() => checkProtectRequest(null), { code: 'ERR_BAD_REQUEST' });
  t.end();
});

t.test('a request to restore is checked field by field', (t) => {
  const good = { store: '/mnt/store', from: 'web', id: `${'0'.repeat(16)}-1`, files: 'keep' };
  t.same(checkRestoreRequest(good), good);
  const bad: Record<string, unknown[]> = {
    store: [undefined, 'relative', 7],
    from: [undefined, '../x'],
    name: ['', '-a'],
    id: ['newest', `${'0'.repeat(16)}-0`],
    key: ['secret'],
    files: [''],
    toString: [1],
  };
  for (const [key, values] of Object.entries(bad)) {
    for (const value of values) {
      const request = { ...good, [key]: value };
      t.throws(() => checkRestoreRequest(request), { code: 'ERR_BAD_REQUEST', message: key });
    }
  }
  t.throws(() => checkRestoreRequest([]), { code: 'ERR_BAD_REQUEST' });
  t.end();
});

t.test('every code survives the way to the client, foreign errors become one of ours', (t) => {
  for (const code of errorCodes) {
    const problem = toProblem(new ReplicationError(code, 'words', { advice: 'do' }));
    t.ok(problem.status >= 400);
    t.match(fromProblem(JSON.parse(JSON.stringify(problem))), { code, message: 'words' });
  }
  t.match(fromProblem(toProblem(new Error('x'))), { code: 'ERR_NATIVE', message: 'x' });
  t.match(fromProblem('garbage'), { code: 'ERR_NATIVE' });
  t.end();
});

t.test('no daemon is told apart from one that may not be asked', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'replpage-api-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const nobody = new ApiClient(join(folder, 'none.sock'));
  await t.rejects(nobody.status(), { code: 'ERR_NO_DAEMON', advice: /replpage daemon/ });
});

t.test('what is asked of the cluster is checked, field by field', async (t) => {
  const { client, cluster, path } = await scene(t);
  t.same(await client.nodes(), nodes);
  t.match(await client.token({ ttlMs: 5000 }), { ttlMs: 5000 });
  await client.initCluster({ name: 'a', listen: 'h:1' });
  await client.joinCluster({ token: 'x', address: 'h' });
  await client.removeNode('b');
  await client.importKey('k');
  t.same(cluster.asked, [
    { name: 'a', listen: 'h:1' },
    { token: 'x', address: 'h' },
    'b',
    { key: 'k' },
  ]);
  const bad: [string, unknown, RegExp][] = [
    ['/v1/cluster/init', { name: '-a' }, /name must be/],
    ['/v1/cluster/init', { certificateLifeMs: 1 }, /certificateLifeMs must be/],
    ['/v1/cluster/init', { constructor: 1 }, /constructor is not known/],
    ['/v1/cluster/join', { token: 't' }, /address is missing/],
    ['/v1/cluster/token', { ttlMs: 0.5 }, /ttlMs must be/],
    ['/v1/cluster/token', [], /not an object/],
    ['/v1/cluster/leave', {}, /there is no/],
    ['/v1/nodes/b/adopt', {}, /there is no/],
    ['/v1/key', {}, /key is missing/],
  ];
  for (const [url, body, why] of bad) {
    const answer = await raw(path, 'POST', url, JSON.stringify(body));
    t.equal(answer.status, 400, url);
    t.match(answer.body, why);
  }
});

t.test('moves', async (t) => {
  const { moves, path, client } = await scene(t);
  t.equal((await client.move('web', 'b')).name, 'web');
  t.same((await client.drain('a')).moved, [{ name: 'web', to: 'b' }]);
  t.match(await client.drill('web', 'b'), { node: 'b', epoch: 7, problem: null });
  await client.drill('web', undefined);
  t.same(moves.asked, [
    'move web to b',
    'drain a',
    'drill web on b',
    'drill web on where it is best',
  ]);
  for (const wrong of ['', '?to=', '?to=b%20c']) {
    const answer = await raw(path, 'POST', `/v1/groups/web/move${wrong}`);
    t.equal(answer.status, 400);
    t.match(answer.body, /the name of a node is wanted/);
  }
  t.equal((await raw(path, 'POST', '/v1/nodes/a%20b/drain')).status, 400);
});
