/** `protect --vip`, on a real daemon in a network namespace, as a client in another one sees it. */
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { createInterface } from 'node:readline';
import t, { type Test } from 'tap';
import type { GroupStatus } from '../../src/api/schema.js';
import { isRunning } from '../support/processes.js';
import { whyNoEngine } from '../support/repository.js';
import { waitFor } from '../support/wait-for.js';
import { NamespaceNetwork, whyNoNamespaces, type NodeInNamespace } from './namespaces.js';

const skip = whyNoNamespaces() ?? whyNoEngine() ?? false;

const vip = '10.77.0.99/24@eth0';
const host = '10.77.0.99';

/** Answers each line with itself, on every address. */
const echo = `
import socketserver, sys
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
server = Server(("0.0.0.0", 4242), Echo)
print("ready", flush=True)
server.serve_forever()
`;
/** Sends its input over one connection, and prints what comes back, or why nothing does. */
const caller = `
import socket, sys
try:
    connection = socket.create_connection(("${host}", 4242), 20)
    replies = connection.makefile()
    for line in sys.stdin:
        connection.sendall(line.encode())
        print(replies.readline(), end="", flush=True)
except OSError as error:
    print("lost:", error, flush=True)
`;

class Call {
  readonly #child: ChildProcess;
  readonly #lines: AsyncIterator<string>;

  constructor(node: NodeInNamespace) {
    this.#child = node.spawn('python3', '-c', caller);
    const input = this.#child.stdout;
    if (input === null) throw new Error('no output');
    this.#lines = createInterface({ input })[Symbol.asyncIterator]();
  }

  async say(text: string): Promise<string> {
    this.#child.stdin?.write(`${text}\n`);
    const next = await this.#lines.next();
    return next.done === true ? 'ended' : next.value;
  }

  end(): void {
    this.#child.kill('SIGKILL');
  }
}

interface Scene {
  readonly a: NodeInNamespace;
  readonly client: NodeInNamespace;
  /** Of the server, before any promotion. */
  readonly pid: number;
  readonly addresses: () => string;
  /** Waits until the group is that. */
  readonly group: (is: (group: GroupStatus) => boolean) => Promise<GroupStatus>;
}

async function scene(t: Test): Promise<Scene> {
  const network = new NamespaceNetwork();
  t.teardown(() => network.end());
  const a = network.node('a');
  const client = network.node('client');
  await a.startDaemon();
  const server = a.spawn('python3', '-c', echo);
  const pid = server.pid ?? 0;
  t.teardown(() => void server.kill('SIGKILL'));
  if (server.stdout === null) throw new Error('no output');
  await once(server.stdout, 'data');
  let seen: GroupStatus | undefined;
  const group = (is: (group: GroupStatus) => boolean): Promise<GroupStatus> =>
    waitFor(
      async () => {
        seen = await a.group('web').catch(() => undefined);
        return seen !== undefined && is(seen) && seen;
      },
      60_000,
      () => `web: ${JSON.stringify(seen)}; ${a.log}`,
    );
  t.teardown(async () => {
    const last = await a.group('web').catch(() => undefined);
    if (last?.running === true) process.kill(last.hostPid, 'SIGKILL');
  });
  // Those that the kernel gives itself are tentative for a second.
  const addresses = (): string =>
    a.ip('-o', 'addr', 'show', 'dev', 'eth0').replaceAll(' tentative', '');
  return { a, client, pid, addresses, group };
}

const isProtected = ({ state }: GroupStatus): boolean => state === 'protected';

t.test('a service address comes with the group, stays, and goes', { skip }, async (t) => {
  const { a, client, pid, addresses, group } = await scene(t);
  const told = path.join(a.runtimeDir, 'told');
  const hook = `env | grep ^REPLPAGE_ >${told}.new; mv ${told}.new ${told}; echo hook was here`;
  const options = ['--name', 'web', '--vip', vip, '--on-promote', hook];
  const made = await a.type('protect', String(pid), ...options);
  t.equal(made.status, 0, made.stderr);
  t.match(addresses(), `${host}/24`);
  t.match((await a.type('status', 'web')).stdout, new RegExp(`address +${vip}\\n`));
  const call = new Call(client);
  t.teardown(() => call.end());
  t.equal(await call.say('one'), 'one');

  // A local promotion: nothing moves, and the client notices nothing.
  process.kill(pid, 'SIGKILL');
  t.equal(await call.say('two'), 'two');
  const { hostPid } = await group((one) => one.hostPid !== pid && isProtected(one));
  t.match(addresses(), `${host}/24`);
  const lines = readFileSync(told, 'utf8');
  t.match(lines, /REPLPAGE_EVENT=promote\n/);
  t.match(lines, /REPLPAGE_REASON=killed by SIGKILL\n/);
  t.match(lines, new RegExp(`REPLPAGE_HOST_PID=${hostPid}\n`));
  t.match(lines, `REPLPAGE_VIP=${vip}\n`);
  t.match(a.log, /hook was here/, 'output of a hook is in the log');

  // Somebody takes it away: it comes back by itself.
  a.ip('addr', 'del', `${host}/24`, 'dev', 'eth0');
  await waitFor(
    () => addresses().includes(host),
    20_000,
    () => `not back: ${a.log}`,
  );
  t.equal(await call.say('three'), 'three');
  const events = (await a.type('events')).stdout;
  t.equal(events.match(/address taken/g)?.length, 2);

  // The daemon is killed: the address stays, and the next one knows it.
  await a.endDaemon('SIGKILL');
  t.equal(await call.say('four'), 'four');
  await a.startDaemon();
  const again = await group(isProtected);
  t.same(again.vip, { address: vip, here: true, wasThere: false, trouble: null });
  const done = await a.type('unprotect', 'web');
  t.match(done.stdout, `${vip} is no address of this machine any more`);
  t.notMatch(addresses(), host);
  t.match(addresses(), '10.77.0.1/24', 'that of the machine is left alone');
  t.ok(await isRunning(hostPid), 'the process runs on');
  process.kill(hostPid, 'SIGKILL');
});

t.test('an address goes with a group that ends, seen or not', { skip }, async (t) => {
  const { a, pid, addresses, group } = await scene(t);
  t.equal((await a.type('protect', String(pid), '--name', 'web', '--vip', vip)).status, 0);
  await a.endDaemon('SIGKILL');
  process.kill(pid, 'SIGKILL');
  await waitFor(async () => !(await isRunning(pid)), 20_000, 'the server does not end');
  t.match(addresses(), host, 'nobody was there to see it');
  await a.startDaemon();
  await waitFor(
    () => !addresses().includes(host),
    20_000,
    () => `still there: ${a.log}`,
  );
  const ended = await group(({ state }) => state === 'ended');
  t.match(ended.vip, { here: false });
});

t.test('what cannot be a service address is refused', { skip }, async (t) => {
  const { a, pid, addresses } = await scene(t);
  const before = addresses();
  const bad: [string, RegExp][] = [
    ['10.77.0.99', /--vip must be ADDRESS\/PREFIX@INTERFACE/],
    ['127.0.0.9/8@lo', /loopback/],
    ['10.77.0.99/24@eth7', /No such device/],
    ['10.77.0.1/24@eth0', /10\.77\.0\.1\/24 on eth0 is not replpage's/],
    ['10.77.0.1/32@lo', /10\.77\.0\.1\/24 on eth0 is not replpage's/],
  ];
  for (const [address, why] of bad) {
    const refused = await a.type('protect', String(pid), '--name', 'web', '--vip', address);
    t.not(refused.status, 0);
    t.match(refused.stderr, why, address);
  }
  t.equal(addresses(), before);
  const { status, stderr } = await a.type('protect', String(process.pid), '--vip', vip);
  t.not(status, 0, stderr);
  t.equal(
    (await a.type('status')).stdout.trim(),
    'no groups; protect one with: replpage protect <pid>',
  );
});
