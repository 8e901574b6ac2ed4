/** Nodes of a cluster over real TLS on the loopback, and strangers who try what they may not. */
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect as connectPlain, createServer as plainServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { once } from 'node:events';
import { connect as connectTls } from 'node:tls';
import t, { type Test } from 'tap';
import { systemClock } from '../../src/base/clock.js';
import { hasCode } from '../../src/base/errors.js';
import { encodeFrame } from '../../src/format/frame.js';
import { formatToken, parseToken } from '../../src/format/join-token.js';
import { encodeMessage, type Member, type PeerMessage } from '../../src/format/peer-messages.js';
import { parseKey } from '../../src/format/recovery-key.js';
import { Cluster } from '../../src/daemon/cluster.js';
import { readCluster } from '../../src/membership/cluster-file.js';
import { ClusterNode } from '../../src/membership/cluster-node.js';
import { makeAuthority, makeKeyPair, makeRequest, sign } from '../../src/transport/certificates.js';
import type { Credentials } from '../../src/transport/credentials.js';
import { greet } from '../../src/transport/greeting.js';
import { askToJoin } from '../../src/transport/join.js';
import { PeerLink } from '../../src/transport/peer-link.js';
import { dialNode, dialStranger, protocols } from '../../src/transport/peer-tls.js';
import { waitFor } from '../support/wait-for.js';
import { facts } from '../sim/network.js';

const root = { pid: 1, uid: 0, gid: 0 };
const silent = () => undefined;
const log = { debug: silent, info: silent, warn: silent, error: silent, child: () => log };

async function freePort(): Promise<number> {
  const server = plainServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

/** The cluster part of one daemon, with a folder of its own. */
class Node {
  readonly folder: string;
  readonly events: string[] = [];
  readonly t: Test;
  cluster: Cluster;
  port = 0;

  constructor(t: Test) {
    this.t = t;
    this.folder = mkdtempSync(join(tmpdir(), 'replpage-cluster-'));
    this.cluster = this.fresh();
    t.teardown(async () => {
      await this.cluster.stop();
      rmSync(this.folder, { recursive: true, force: true });
    });
  }

  fresh(): Cluster {
    return new Cluster({
      ...{ stateDir: this.folder, storeKeyPath: join(this.folder, 'store.key') },
      ...{ version: '0.1.0', clock: systemClock, log },
      facts: () => facts,
      note: (node, what, why) => this.events.push(`${node} ${what} ${why}`),
    });
  }

  async restart(): Promise<void> {
    await this.cluster.stop();
    this.cluster = this.fresh();
    await this.cluster.start();
  }

  get address(): string {
    return `127.0.0.1:${this.port}`;
  }

  async init(name: string, more: { certificateLifeMs?: number; listen?: string } = {}) {
    this.port = await freePort();
    return this.cluster.init(root, { name, listen: this.address, ...more });
  }

  async join(at: Node, name: string, token = at.cluster.token(root, {}).token) {
    this.port = await freePort();
    return this.cluster.join(root, { token, address: at.address, name, listen: this.address });
  }

  state(name: string): string | undefined {
    return this.cluster.nodes().nodes.find((node) => node.name === name)?.state;
  }

  sees(name: string, state: string): Promise<unknown> {
    const reason = () => JSON.stringify(this.cluster.nodes().nodes);
    return waitFor(() => this.state(name) === state, 30_000, reason);
  }

  record() {
    const text = readFileSync(join(this.folder, 'cluster.json'), 'utf8');
    return JSON.parse(text.slice(text.indexOf('\n'))) as {
      caKey: string;
      ca: string;
      cluster: string;
      certificate: string;
      privateKey: string;
      members: Member[];
    };
  }
}

/** One more try with a token, without a node. */
async function guess(at: Node, token: string): Promise<unknown> {
  const request = await makeRequest(await makeKeyPair());
  const asked = {
    name: 'x',
    zone: null,
    protocol: 1,
    version: '0',
    address: '127.0.0.1:1',
    request,
  };
  const address = { host: '127.0.0.1', port: at.port };
  return askToJoin({ token: parseToken(token), address, nowMs: Date.now(), ask: () => asked });
}

async function pair(t: Test, life: { certificateLifeMs?: number } = {}): Promise<[Node, Node]> {
  const [a, b] = [new Node(t), new Node(t)];
  await a.init('a', life);
  await b.join(a, 'b');
  await Promise.all([a.sees('b', 'up'), b.sees('a', 'up')]);
  return [a, b];
}

/** What a connection was told before it ended. */
async function toldBy(link: PeerLink): Promise<string> {
  return link.next(10_000).then(
    ({ kind }) => `heard ${kind}`,
    (error: Error) => `${error.name}: ${error.message}`,
  );
}

t.test('an address that this machine has not, or that is none, is refused', async (t) => {
  const node = new Node(t);
  for (const listen of ['no-such-host.invalid:7420', '192.0.2.9:7420', '0.0.0.0:7420', 'a b'])
    await t.rejects(node.init('a', { listen }), { code: 'ERR_USAGE' }, listen);
  await node.init('a');
});

t.test('init, token, join: both know both, and remember after a restart', async (t) => {
  const a = new Node(t);
  const made = await a.init('a');
  t.same(parseKey(made.recoveryKey), readFileSync(join(a.folder, 'store.key')));
  t.match(made.node, { name: 'a', state: 'self', signs: true });
  await t.rejects(a.cluster.init(root, {}), { code: 'ERR_IN_CLUSTER' });
  const b = new Node(t);
  const { token } = a.cluster.token(root, {});
  await b.join(a, 'b', token);
  await Promise.all([a.sees('b', 'up'), b.sees('a', 'up')]);
  t.same(
    a.cluster.nodes().nodes.map(({ id, address }) => [id, address]),
    b.cluster.nodes().nodes.map(({ id, address }) => [id, address]),
  );
  t.same(readFileSync(join(b.folder, 'store.key')), readFileSync(join(a.folder, 'store.key')));
  t.equal(b.record().caKey, null, "the CA's key stays where it is");
  t.notMatch(JSON.stringify(a.record()), b.record().privateKey.slice(40, 80));
  t.throws(() => b.cluster.token(root, {}), { code: 'ERR_DENIED', advice: /on a/ });
  t.throws(() => a.cluster.token({ pid: 1, uid: 1000, gid: 1000 }, {}), { code: 'ERR_DENIED' });
  for (const file of ['cluster.json', 'store.key']) {
    const listed = (): string[] => readdirSync(a.folder).filter((name) => name.startsWith(file));
    // A record that has just changed may be on its way to the disk.
    await waitFor(() => listed().join() === file, 5000, 'something half written is left');
  }
  await Promise.all([a.restart(), b.restart()]);
  await Promise.all([a.sees('b', 'up'), b.sees('a', 'up')]);
  const third = new Node(t);
  const late = third.join(a, 'c', token);
  await t.rejects(late, { code: 'ERR_JOIN', message: /not one of this node/ }, 'forgotten by then');
});

t.test(
  'a token is refused with the reason: used, expired, wrong, of another cluster',
  async (t) => {
    const [a] = await pair(t);
    const once = a.cluster.token(root, {}).token;
    const c = new Node(t);
    await t.rejects(c.join(a, 'b', once), { code: 'ERR_JOIN', message: /a node b already/ });
    await c.join(a, 'c', once);
    const d = new Node(t);
    await t.rejects(d.join(a, 'd', once), { message: /used already/ });
    const short = a.cluster.token(root, { ttlMs: 1 }).token;
    await waitFor(() => systemClock.sleep(5).then(() => true), 100, '');
    await t.rejects(d.join(a, 'd', short), { message: /expired/ });
    const parsed = parseToken(a.cluster.token(root, {}).token);
    const wrong = formatToken({ ...parsed, secret: Buffer.alloc(16) });
    await t.rejects(d.join(a, 'd', wrong), { message: /not one of this node/ });
    const foreign = formatToken({ ...parsed, pin: Buffer.alloc(16) });
    await t.rejects(d.join(a, 'd', foreign), { message: /not of the cluster/ });
    await t.rejects(d.join(a, 'd', 'rpt1abc'), { code: 'ERR_USAGE', message: /characters/ });
    for (let count = 0; count < 3; count++) await t.rejects(d.join(a, 'd', wrong));
    await Promise.all([1, 2, 3].map(() => t.rejects(guess(a, wrong))));
    await t.rejects(d.join(a, 'd', wrong), { message: /too many tries/ });
    t.same(readdirSync(d.folder), [], 'nothing is left of the tries');
    writeFileSync(join(d.folder, 'store.key'), Buffer.alloc(32, 7), { mode: 0o600 });
    await t.rejects(d.join(a, 'd'), { code: 'ERR_STATE', message: /another key/ });
  },
);

t.test('what was overheard of a join is of no use on another connection', async (t) => {
  const [a] = await pair(t);
  const token = parseToken(a.cluster.token(root, {}).token);
  const seen: PeerMessage[] = [];
  const { prototype } = PeerLink;
  const { send } = Object.getOwnPropertyDescriptors(prototype) as unknown as {
    send: { value: (this: PeerLink, message: PeerMessage) => void };
  };
  prototype.send = function (message) {
    if (message.kind === 'joinRequest') seen.push(message);
    // The request is lost on its way, once.
    if (message.kind === 'joinRequest' && seen.length === 1) return this.close();
    send.value.call(this, message);
  };
  t.teardown(() => (prototype.send = send.value));
  const request = await makeRequest(await makeKeyPair());
  const address = { host: '127.0.0.1', port: a.port };
  const asked = {
    name: 'x',
    zone: null,
    protocol: 1,
    version: '0',
    address: '127.0.0.1:1',
    request,
  };
  await t.rejects(askToJoin({ token, address, nowMs: Date.now(), ask: () => asked }));
  const [overheard] = seen;
  if (overheard === undefined) throw new Error('no request was made');
  const link = new PeerLink(await dialStranger(address));
  t.equal(await toldBy(link), 'heard joinOffer');
  link.send(overheard);
  t.match(await toldBy(link), /PeerRefusal: the token is not one of this node/);
  const good = await askToJoin({ token, address, nowMs: Date.now(), ask: () => asked });
  t.equal(good.member.name, 'x', 'the token was not used up by it');
});

t.test('nobody without a certificate of the cluster gets a word', async (t) => {
  const [a, b] = await pair(t);
  const address = { host: '127.0.0.1', port: a.port };
  const before = JSON.stringify(a.cluster.nodes().nodes.map(({ name, state }) => [name, state]));
  // No certificate at all, as a node.
  const bare = connectTls({
    ...address,
    ALPNProtocols: [protocols.node],
    rejectUnauthorized: false,
  });
  await once(bare, 'secureConnect');
  const link = new PeerLink(bare);
  link.send({ kind: 'members', body: { members: [] } });
  t.match(await toldBy(link), /PeerRefusal: there is no certificate/);
  // Neither TLS 1.2, nor another protocol, nor none.
  for (const options of [{ maxVersion: 'TLSv1.2' }, { ALPNProtocols: ['h2'] }] as const) {
    const socket = connectTls({ ...address, rejectUnauthorized: false, ...options });
    await t.rejects(once(socket, 'secureConnect'), JSON.stringify(options));
  }
  const mute = connectTls({ ...address, rejectUnauthorized: false });
  mute.on('error', silent);
  await once(mute, 'close');
  // Without a token a stranger hears the CA's certificate, and no more.
  const stranger = new PeerLink(await dialStranger(address));
  t.equal(await toldBy(stranger), 'heard joinOffer');
  stranger.send({ kind: 'heartbeat', body: { sequence: 1, echo: 0, heldUs: 0, digest: '' } });
  t.match(await toldBy(stranger), /closed/);
  const large = new PeerLink(await dialStranger(address));
  await large.next(5000);
  large.socket.write(encodeFrame(17, Buffer.alloc(40_000)));
  t.match(await toldBy(large), /closed/, 'a frame too large for a stranger');
  // A CA of the same name, and the CA's very certificate with another's key.
  const record = a.record();
  const forged = await makeAuthority(record.cluster, Date.now());
  const members = record.members;
  const id = members.find(({ name }) => name === 'b')?.id ?? '';
  const foreign = await credentialsOf(forged, record.cluster, { id, name: 'b' }, record.ca);
  const refused = new PeerLink(await dialNode(address, foreign));
  refused.send(helloOf(record.cluster, id));
  t.match(await toldBy(refused), /PeerRefusal: its certificate was not issued by this cluster/);
  t.equal(JSON.stringify(a.cluster.nodes().nodes.map(({ name, state }) => [name, state])), before);
  t.equal(b.state('a'), 'up');
});

const helloOf = (cluster: string, id: string, protocol = 1): PeerMessage => ({
  kind: 'hello',
  body: { cluster, id, name: 'b', protocol, version: '9', run: '0'.repeat(16) },
});

async function credentialsOf(
  authority: { certificate: string; privateKey: string },
  cluster: string,
  node: { id: string; name: string },
  ca: string,
  life: { nowMs: number; lifeMs: number } = { nowMs: Date.now(), lifeMs: 3_600_000 },
): Promise<Credentials> {
  const keys = await makeKeyPair();
  const identity = { cluster, ...node };
  const certificate = await sign(authority, identity, await makeRequest(keys), life);
  return { cluster, certificate, privateKey: keys.privateKey, ca };
}

t.test('expired, removed, misnamed, too old: refused on both sides, with the reason', async (t) => {
  const a = new Node(t);
  await a.init('a');
  const { cluster, ca, caKey } = a.record();
  const authority = { certificate: ca, privateKey: caKey };
  const address = { host: '127.0.0.1', port: a.port };
  const node = { id: '00000000000000bb', name: 'b' };
  const said = async (credentials: Credentials, first: PeerMessage): Promise<string> => {
    const link = new PeerLink(await dialNode(address, credentials));
    link.send(first);
    const heard = await toldBy(link);
    return heard === 'heard hello' ? toldBy(link) : heard;
  };
  const good = await credentialsOf(authority, cluster, node, ca);
  const past = { nowMs: Date.now() - 7_200_000, lifeMs: 3_600_000 };
  const old = await credentialsOf(authority, cluster, node, ca, past);
  t.match(await said(old, helloOf(cluster, node.id)), /PeerRefusal: its certificate has expired/);
  const other = await credentialsOf(authority, '00000000000000cc', node, ca);
  t.match(await said(other, helloOf(cluster, node.id)), /PeerRefusal.*another cluster/);
  t.match(await said(good, helloOf('00000000000000cc', node.id)), /PeerRefusal.*is not cluster/);
  t.match(
    await said(good, helloOf(cluster, '00000000000000cc')),
    /PeerRefusal.*certificate of node b/,
  );
  t.match(
    await said(good, helloOf(cluster, node.id, 3)),
    /PeerRefusal.*more than one protocol apart/,
  );
  t.match(await said(good, { kind: 'renew', body: { request: '' } }), /PeerRefusal.*no hello/);
  // The caller's own side has the same words for itself.
  const socket = await dialNode(address, good);
  const { body } = helloOf(cluster, node.id, 3) as Extract<PeerMessage, { kind: 'hello' }>;
  const options = { hello: body, credentials: good, nowMs: () => Date.now() };
  await t.rejects(greet(socket, { ...options, refuses: () => undefined }), {
    message: /bring a up to date/,
  });
  t.equal(await said(good, helloOf(cluster, node.id, 2)), 'heard facts', 'one apart works');
  await a.cluster.removeNode(root, 'b').catch(silent);
  t.same(a.cluster.nodes().nodes.length, 1, 'a certificate alone makes no member of the list');
});

t.test('slow and broken frames end a connection, and only that', async (t) => {
  const [a, b] = await pair(t);
  const address = { host: '127.0.0.1', port: a.port };
  const slow = new PeerLink(await dialStranger(address), { frameMs: 300, unsentBytesMax: 1e6 });
  await slow.next(5000);
  const frame = encodeFrame(17, Buffer.alloc(1000));
  slow.socket.write(frame.subarray(0, 10));
  t.match(await toldBy(slow), /said nothing|closed/, 'a request that does not come on');
  const torn = new PeerLink(await dialStranger(address));
  await torn.next(5000);
  const broken = Buffer.from(frame);
  broken[30] = 1;
  torn.socket.write(broken);
  t.match(await toldBy(torn), /closed/);
  const plain = connectPlain(address);
  plain.on('error', silent);
  plain.write('GET / HTTP/1.1\r\n\r\n');
  await once(plain, 'close');
  // This end's own deadline, against a node that drips.
  const { cluster, certificate, privateKey, ca } = b.record();
  const socket = await dialNode(address, { cluster, certificate, privateKey, ca });
  const late = new PeerLink(socket, { frameMs: 100, unsentBytesMax: 1e6 });
  late.socket.emit('data', encodeMessage(helloOf(cluster, '0'.repeat(16))).subarray(0, 30));
  t.match(await toldBy(late), /PeerLink|frame took longer|Error/);
  t.equal(a.state('b'), 'up');
});

t.test('a removed node is refused everywhere, and may join anew as another', async (t) => {
  const [a, b] = await pair(t);
  await t.rejects(a.cluster.removeNode(root, 'nobody'), { code: 'ERR_NO_NODE' });
  await t.rejects(a.cluster.removeNode(root, 'a'), { code: 'ERR_STATE', message: /itself/ });
  await a.cluster.removeNode(root, 'b');
  t.equal(a.state('b'), undefined);
  await b.sees('b', 'removed');
  t.match(b.cluster.warnings, [/was removed/]);
  const { cluster, certificate, privateKey, ca } = b.record();
  const address = { host: '127.0.0.1', port: a.port };
  const link = new PeerLink(await dialNode(address, { cluster, certificate, privateKey, ca }));
  t.match(await toldBy(link), /PeerRefusal: node b was removed/);
  await a.restart();
  const again = new PeerLink(await dialNode(address, { cluster, certificate, privateKey, ca }));
  t.match(await toldBy(again), /PeerRefusal: node b was removed/, 'also after a restart');
  const anew = new Node(t);
  await anew.join(a, 'b');
  await a.sees('b', 'up');
});

t.test('certificates renew themselves, and nobody sees a node go', async (t) => {
  const [a, b] = await pair(t, { certificateLifeMs: 10_000 });
  const first = [a, b].map((node) => node.record().certificate);
  const states = new Set<unknown>();
  const watch = setInterval(() => states.add(a.state('b')).add(b.state('a')), 50);
  const renewals = new Set<string>();
  await waitFor(
    () => {
      for (const node of [a, b]) renewals.add(node.record().certificate);
      return renewals.size >= 6;
    },
    60_000,
    () => `${renewals.size} certificates were seen: ${JSON.stringify(b.cluster.warnings)}`,
  );
  clearInterval(watch);
  t.same([...states], ['up']);
  t.notMatch(a.record().certificate, first[0] ?? '');
  t.ok(Date.parse(b.cluster.nodes().certificateUntil) > Date.now());
});

t.test('state that cannot be written or read', async (t) => {
  const [a, b] = await pair(t);
  const path = join(a.folder, 'cluster.json');
  await a.cluster.stop();
  const whole = readFileSync(path);
  // Half a file from a crash in the middle of a write is no hindrance.
  writeFileSync(`${path}.new`, whole.subarray(0, 100));
  await a.restart();
  await a.sees('b', 'up');
  // A damaged one is told, never taken, and never overwritten.
  for (const damaged of [whole.subarray(0, 500), Buffer.alloc(0), Buffer.alloc(whole.length)]) {
    await a.cluster.stop();
    writeFileSync(path, damaged);
    a.cluster = a.fresh();
    await a.cluster.start();
    t.match(a.cluster.warnings, [/cannot read this node's part/]);
    await t.rejects(a.cluster.init(root, {}), { code: 'ERR_STATE_FILE', advice: /sound copy/ });
    t.throws(() => a.cluster.nodes(), { code: 'ERR_STATE_FILE' });
    t.same(readFileSync(path), damaged);
  }
  await t.rejects(readCluster(path), { code: 'ERR_STATE_FILE' });
  writeFileSync(path, whole);
  await a.restart();
  await a.sees('b', 'up');
  await b.sees('a', 'up');
  t.end();
});

/** False while a file has that name. */
function isMade(folder: string): boolean {
  try {
    mkdirSync(folder);
    return true;
  } catch (error) {
    if (hasCode(error, 'EEXIST')) return false;
    throw error;
  }
}

t.test(
  'a disk that takes nothing: what must be durable is refused, the old state stays',
  async (t) => {
    const [a] = await pair(t);
    const path = join(a.folder, 'cluster.json');
    // A folder where the new file would be written stands for every way in which a disk says no.
    await waitFor(() => isMade(`${path}.new`), 5000, 'the record of before is still written');
    const before = readFileSync(path);
    const c = new Node(t);
    const { token } = a.cluster.token(root, {});
    await t.rejects(c.join(a, 'c', token), { message: /could not be recorded/ });
    await t.rejects(a.cluster.removeNode(root, 'b'));
    t.equal(a.state('b'), 'up', 'what was not recorded was not done');
    t.same(readFileSync(path), before);
    t.match(a.cluster.warnings, [/cannot be written/]);
    rmSync(`${path}.new`, { recursive: true });
    await c.join(a, 'c', token);
    await a.sees('c', 'up');
    t.same(a.cluster.warnings, []);
  },
);

t.test('nodes of versions one apart work together, of two apart say so', async (t) => {
  const a = new Node(t);
  await a.init('a');
  const b = new Node(t);
  await b.join(a, 'b');
  await b.cluster.stop();
  const record = await readCluster(join(b.folder, 'cluster.json'));
  if (record === undefined) throw new Error('no record');
  const as = (protocol: number): ClusterNode =>
    new ClusterNode(record, {
      ...{ path: join(b.folder, 'cluster.json'), storeKeyPath: join(b.folder, 'store.key') },
      ...{ version: `0.${protocol}`, clock: systemClock, log, protocol },
      facts: () => facts,
      note: silent,
    });
  const next = as(2);
  await next.start();
  await a.sees('b', 'up');
  await next.stop();
  // It may have gone before its own record had come over: awaited, then, and not unreachable.
  await waitFor(() => a.state('b') !== 'up', 30_000, 'b is still seen');
  const far = as(3);
  await far.start();
  const troubleOf = (): string | undefined =>
    far.nodes.find(({ member }) => member.name === 'a')?.trouble;
  await waitFor(
    () => troubleOf()?.includes('more than one protocol apart'),
    15_000,
    () => String(troubleOf()),
  );
  await far.stop();
  t.match(troubleOf(), /bring a up to date/);
});
