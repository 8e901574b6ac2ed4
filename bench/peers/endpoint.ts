/**
 * One end of a stream of bytes, as a process of its own: `endpoint.js serve|send JSON`. Prints one
 * JSON line when it listens, and one with what passed when it is over.
 */
import { once } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';
import { connect as connectTls, createServer as createTlsServer } from 'node:tls';

export interface EndpointOptions {
  readonly host: string;
  readonly port: number;
  readonly seconds: number;
  /** undefined: plain TCP. */
  readonly tls?: {
    readonly ciphers: string;
    readonly cert: string;
    readonly key: string;
    readonly ca: string;
  };
}

export interface Passed {
  readonly bytes: number;
  readonly seconds: number;
  readonly cpuSeconds: number;
}

const chunkBytes = 256 * 1024;

const say = (value: object): void => void process.stdout.write(`${JSON.stringify(value)}\n`);

function passed(bytes: number, sinceMs: number, cpu: NodeJS.CpuUsage): Passed {
  const { user, system } = process.cpuUsage(cpu);
  const seconds = (performance.now() - sinceMs) / 1000;
  return { bytes, seconds, cpuSeconds: (user + system) / 1e6 };
}

async function serve({ host, port, tls }: EndpointOptions): Promise<void> {
  const only = { minVersion: 'TLSv1.3', requestCert: true } as const;
  const event = tls === undefined ? 'connection' : 'secureConnection';
  const server = tls === undefined ? createServer() : createTlsServer({ ...only, ...tls });
  server.listen(port, host);
  await once(server, 'listening');
  say({ listening: true });
  const [socket] = (await once(server, event)) as [Socket];
  const [since, cpu] = [performance.now(), process.cpuUsage()];
  let bytes = 0;
  socket.on('data', (chunk: Buffer) => (bytes += chunk.length));
  await once(socket, 'close');
  say(passed(bytes, since, cpu));
  server.close();
}

async function send({ host, port, seconds, tls }: EndpointOptions): Promise<void> {
  const checks = { minVersion: 'TLSv1.3', checkServerIdentity: () => undefined } as const;
  const socket =
    tls === undefined ? connect(port, host) : connectTls({ host, port, ...checks, ...tls });
  await once(socket, tls === undefined ? 'connect' : 'secureConnect');
  const [since, cpu] = [performance.now(), process.cpuUsage()];
  const chunk = Buffer.alloc(chunkBytes, 0x5a);
  let bytes = 0;
  while (performance.now() - since < seconds * 1000) {
    bytes += chunk.length;
    if (!socket.write(chunk)) await once(socket, 'drain');
  }
  socket.end();
  await once(socket, 'close');
  say(passed(bytes, since, cpu));
}

const [, , role, text] = process.argv;
const options = JSON.parse(text ?? '{}') as EndpointOptions;
await (role === 'serve' ? serve(options) : send(options));
