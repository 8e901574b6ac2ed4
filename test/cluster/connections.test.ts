/** Established connections move along with the service address, whatever makes the group go. */
import { createInterface } from 'node:readline';
import t, { type Test } from 'tap';
import { sendSignal } from '../support/processes.js';
import { waitFor } from '../support/wait-for.js';
import type { NodeInNamespace } from './namespaces.js';
import {
  groupOf,
  limitMs,
  pair,
  port,
  protect,
  runsOn,
  startRedis,
  whyNoPair,
} from './redis-pair.js';

const vip = '10.77.0.99/24@eth0';
const host = '10.77.0.99';

/**
 * Counts on one connection, a few requests ahead of their answers, and prints each second how far it
 * is and the longest that it had to wait for an answer, in ms.
 */
const counter = `
import socket, sys, time
connection = socket.create_connection(("${host}", ${port}), 60)
replies = connection.makefile("rb")
ahead, sent, seen, longest, told = 8, 0, 0, 0.0, time.monotonic()
try:
    while True:
        while sent < seen + ahead:
            connection.sendall(b"INCR count\\r\\n")
            sent += 1
        before = time.monotonic()
        line = replies.readline()
        now = time.monotonic()
        seen += 1
        if line != b":%d\\r\\n" % seen:
            print("wrong", seen, line, flush=True)
            break
        longest = max(longest, now - before)
        if now - told > 0.2:
            print(seen, round(longest * 1000), flush=True)
            longest, told = 0.0, now
except OSError as error:
    print("lost", error, flush=True)
`;

/**
 * Reads large values slowly over one connection, so that much is queued on the way, and prints how
 * many were whole.
 */
const reader = `
import socket, time
connection = socket.create_connection(("${host}", ${port}), 60)
replies = connection.makefile("rb", 4096)
value = bytes(i * 7 & 255 for i in range(300000))
connection.sendall(b"*3\\r\\n$3\\r\\nSET\\r\\n$5\\r\\nlarge\\r\\n$300000\\r\\n" + value + b"\\r\\n")
replies.readline()
whole = 0
try:
    connection.sendall(b"GET large\\r\\n" * 3)
    while True:
        connection.sendall(b"GET large\\r\\n")
        head = replies.readline()
        body = b""
        while len(body) < 300002:
            body += replies.read(min(40000, 300002 - len(body)))
            time.sleep(0.002)
        if head != b"$300000\\r\\n" or body != value + b"\\r\\n":
            print("wrong", whole, head, flush=True)
            break
        whole += 1
        print(whole, 0, flush=True)
except OSError as error:
    print("lost", error, flush=True)
`;

/** What a client says. */
class Client {
  readonly lines: string[] = [];

  constructor(t: Test, node: NodeInNamespace, script: string) {
    const child = node.spawn('python3', '-c', script);
    t.teardown(() => void child.kill('SIGKILL'));
    if (child.stdout === null) throw new Error('no output');
    createInterface({ input: child.stdout }).on('line', (line) => this.lines.push(line));
  }

  /** It goes on from here. Throws where it does not. */
  async goesOn(): Promise<void> {
    const from = this.lines.length + 2;
    await waitFor(
      () => this.lines.length > from || this.broken,
      limitMs,
      () => `the client gets no answers any more: ${this.lines.slice(-3).join(', ')}`,
    );
    if (this.broken) throw new Error(this.lines.at(-1));
  }

  get broken(): boolean {
    return /^(wrong|lost)/.test(this.lines.at(-1) ?? '');
  }

  /** The longest wait since the last call, in ms. */
  longest(): number {
    return Math.max(...this.lines.splice(0).map((line) => Number(line.split(' ')[1])));
  }
}

const addressesOf = (node: NodeInNamespace): string => node.ip('-o', 'addr', 'show', 'dev', 'eth0');

async function isProtected(node: NodeInNamespace): Promise<void> {
  await waitFor(
    async () => (await groupOf(node).catch(() => undefined))?.state === 'protected',
    limitMs,
    () => `it is not protected again: ${node.log}`,
  );
}

t.test(
  'a client stays connected while its server changes nodes',
  { skip: whyNoPair },
  async (t) => {
    const nodes = await pair(t);
    const { network, a, b } = nodes;
    const client = network.node('client');
    const pid = await startRedis(t, a);
    await protect(nodes, pid, '--vip', vip);
    const counting = new Client(t, client, counter);
    const reading = new Client(t, client, reader);
    const goOn = () => Promise.all([counting.goesOn(), reading.goesOn()]);
    await goOn();

    const there = await a.type('move', 'db', '--to', 'b');
    t.equal(there.status, 0, there.stderr);
    await runsOn(b);
    await goOn();
    t.comment(`moved: at most ${counting.longest()} ms without an answer`);
    t.match(addressesOf(b), host);
    t.notMatch(addressesOf(a), host);
    await isProtected(b);

    const { hostPid } = await groupOf(b);
    sendSignal(hostPid, 'SIGKILL');
    await runsOn(a);
    await goOn();
    t.comment(`killed: at most ${counting.longest()} ms without an answer`);
    t.match(addressesOf(a), host);
    t.notMatch(addressesOf(b), host);
    await isProtected(a);

    t.match(await groupOf(a), { vip: { here: true, wasThere: false, trouble: null } });
    const back = await a.type('move', 'db', '--to', 'b');
    t.equal(back.status, 0, back.stderr);
    await goOn();
    t.match(addressesOf(b), host);
    t.notOk(counting.broken);
    t.notOk(reading.broken);
  },
);
