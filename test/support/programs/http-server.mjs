// An HTTP server with a heap of its own: http-server.mjs PORT MIB. GET /echo?n=N answers N, after
// a part of the heap has been checked and replaced.
import { createServer } from 'node:http';

const [port, mib] = process.argv.slice(2).map(Number);
const entries = new Map();
for (let i = 0; i < mib * 1000; i++) entries.set(i, { number: i, text: `${i}:`.padEnd(1000, 'x') });

function turn(number) {
  const key = (number * 7919) % entries.size;
  const entry = entries.get(key);
  if (!entry.text.startsWith(`${entry.number}:`)) return false;
  entries.set(key, { number, text: `${number}:`.padEnd(1000, 'y') });
  return true;
}

const server = createServer((request, response) => {
  const number = Number(new URL(request.url, 'http://localhost').searchParams.get('n'));
  const body = turn(number) ? String(number) : 'ERROR';
  response.setHeader('Content-Length', Buffer.byteLength(body));
  response.end(body);
});
server.keepAliveTimeout = 600_000;
server.maxRequestsPerSocket = 0;
server.listen(port, '127.0.0.1', () => console.log('READY'));
