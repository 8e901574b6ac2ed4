/** How fast bytes go between two namespaces, and what that costs, with and without TLS in Node.js. */
import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { promisify } from 'node:util';
import { NamespaceNetwork } from '../../test/cluster/namespaces.js';
import { root } from '../../test/support/repository.js';
import { makeAuthority, makeKeyPair, makeRequest, sign } from '../../src/transport/certificates.js';
import { median, type Figures } from '../figures.js';
import type { EndpointOptions, Passed } from './endpoint.js';

const program = path.join(import.meta.dirname, 'endpoint.js');
const nativeTest = path.join(root, 'build/Release/core_test');
const cases = {
  'plain TCP': undefined,
  'node:tls AES-128-GCM': 'TLS_AES_128_GCM_SHA256',
  'node:tls AES-256-GCM': 'TLS_AES_256_GCM_SHA384',
} as const;
/** What the issue wants of pages. */
const wantedGbPerS = 1;

async function credentials() {
  const cluster = '0'.repeat(16);
  const nowMs = Date.now();
  const authority = await makeAuthority(cluster, nowMs);
  const pair = await makeKeyPair();
  const identity = { cluster, id: cluster, name: 'bench' };
  const life = { nowMs, lifeMs: 3_600_000 };
  const cert = await sign(authority, identity, await makeRequest(pair), life);
  return { cert, key: pair.privateKey, ca: authority.certificate };
}

/** Staged bytes in frames over native TLS: both ends in one process, over the loopback interface. */
export async function measureNative(rounds: number, figures: Figures): Promise<void> {
  const rates: number[] = [];
  const costs: number[] = [];
  for (let round = 0; round < rounds; round++) {
    const { stdout } = await promisify(execFile)(nativeTest, ['peer_stream_figures']);
    const [, rate, cost] = /^# ([\d.]+) GB\/s, ([\d.]+) core-seconds/m.exec(stdout) ?? [];
    if (rate === undefined) throw new Error(`no figures: ${stdout}`);
    rates.push(Number(rate));
    costs.push(Number(cost));
  }
  figures.distribution('native TLS, frames', 'GB/s', rates);
  figures.shown('native TLS, frames, both ends', median(costs), 'core-seconds per GB');
  figures.atLeast('native TLS, frames', median(rates), 'GB/s', wantedGbPerS);
}

/** Lines of JSON that it prints, one after the other. */
function start(network: NamespaceNetwork, node: string, role: string, options: EndpointOptions) {
  const space = `--net=/run/netns/${network.prefix}-${node}`;
  const args = [space, process.execPath, program, role, JSON.stringify(options)];
  const child: ChildProcess = spawn('nsenter', args, { stdio: ['ignore', 'pipe', 'inherit'] });
  if (child.stdout === null) throw new Error('no pipe');
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]();
  return {
    child,
    async line<T>(): Promise<T> {
      const { value, done } = (await lines.next()) as { value: string; done?: boolean };
      if (done === true) throw new Error(`${role} ended without a word`);
      return JSON.parse(value) as T;
    },
  };
}

export async function measureStreams(
  sizes: { readonly seconds: number; readonly rounds: number },
  figures: Figures,
): Promise<void> {
  const network = new NamespaceNetwork();
  const [a, b] = [network.node('a'), network.node('b')];
  const results = new Map<string, { rates: number[]; costs: number[] }>();
  try {
    const made = await credentials();
    let port = 9000;
    for (let round = 0; round < sizes.rounds; round++) {
      for (const [name, ciphers] of Object.entries(cases)) {
        const tls = ciphers === undefined ? undefined : { ...made, ciphers };
        const common = { host: b.host, port: port++, seconds: sizes.seconds };
        const options = { ...common, ...(tls === undefined ? {} : { tls }) };
        const server = start(network, b.name, 'serve', options);
        await server.line();
        const client = start(network, a.name, 'send', options);
        const [got, sent] = await Promise.all([server.line<Passed>(), client.line<Passed>()]);
        for (const { child } of [server, client]) {
          if (child.exitCode === null) await once(child, 'exit');
        }
        const known = results.get(name) ?? { rates: [], costs: [] };
        known.rates.push(got.bytes / got.seconds / 1e9);
        known.costs.push((got.cpuSeconds + sent.cpuSeconds) / (got.bytes / 1e9));
        results.set(name, known);
      }
    }
  } finally {
    await network.end();
  }
  for (const [name, { rates, costs }] of results) {
    figures.distribution(name, 'GB/s', rates);
    figures.shown(`${name}, both ends`, median(costs), 'core-seconds per GB');
    if (name === 'plain TCP') figures.shown(name, median(rates), 'GB/s');
    else figures.atLeast(name, median(rates), 'GB/s', wantedGbPerS);
  }
}
