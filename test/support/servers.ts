/** The real programs: started as an operator would, each on a port of its own on loopback. */
import type { ChildProcess } from 'node:child_process';
import { mkdir, writeFile } from 'node:fs/promises';
import { createConnection, createServer, type AddressInfo } from 'node:net';
import path from 'node:path';
import {
  echoProtocol,
  httpProtocol,
  memcachedProtocol,
  redisProtocol,
  type Protocol,
} from './recorder.js';
import { programsDir } from './repository.js';
import type { Stage } from './stage.js';
import { waitFor } from './wait-for.js';

export interface Server {
  readonly name: string;
  readonly port: number;
  readonly child: ChildProcess;
  readonly pid: number;
  /** How client number `i` talks to it. */
  protocol(i: number): Protocol;
}

const startMs = 60_000;

export function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once('error', reject);
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address() as AddressInfo;
      server.close(() => resolve(port));
    });
  });
}

function answers(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = createConnection({ host: '127.0.0.1', port });
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}

async function serve(
  name: string,
  port: number,
  child: ChildProcess,
  protocol: (i: number) => Protocol,
): Promise<Server> {
  await waitFor(
    () => {
      if (child.exitCode !== null) throw new Error(`${name} ended with ${child.exitCode}`);
      return answers(port);
    },
    startMs,
    `${name} does not listen`,
  );
  return { name, port, child, pid: child.pid ?? 0, protocol };
}

export async function startRedis(stage: Stage, ...settings: string[]): Promise<Server> {
  const port = await freePort();
  const own = ['--port', String(port), '--bind', '127.0.0.1', '--dir', stage.folder];
  const quiet = ['--save', '', '--appendonly', 'no', '--enable-debug-command', 'local'];
  const child = stage.spawn('redis-server', [...own, ...quiet, ...settings]);
  return serve('redis-server', port, child, (i) => redisProtocol(`recorder:${i}`));
}

export async function startMemcached(stage: Stage, mib = 64): Promise<Server> {
  const port = await freePort();
  const user = process.getuid?.() === 0 ? ['-u', 'root'] : [];
  const args = ['-l', '127.0.0.1', '-p', String(port), '-U', '0', '-m', String(mib), ...user];
  const child = stage.spawn('memcached', args);
  return serve('memcached', port, child, (i) => memcachedProtocol(`recorder${i}`));
}

/** A master and two workers, in the foreground. */
export async function startNginx(stage: Stage): Promise<Server> {
  const port = await freePort();
  const prefix = stage.path('nginx');
  await mkdir(prefix, { recursive: true });
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map(
    (kind) => `${kind}_temp_path ${prefix}/${kind};`,
  );
  const configuration = `
    worker_processes 2;
    daemon off;
    ${process.getuid?.() === 0 ? 'user root;' : ''}
    pid ${prefix}/nginx.pid;
    error_log ${prefix}/error.log;
    events { worker_connections 256; }
    http {
      access_log off;
      keepalive_timeout 600s;
      keepalive_requests 100000000;
      ${temporary.join('\n      ')}
      server {
        listen 127.0.0.1:${port};
        location = /echo { return 200 $arg_n; }
      }
    }
  `;
  const file = path.join(prefix, 'nginx.conf');
  await writeFile(file, configuration);
  const child = stage.spawn('/usr/sbin/nginx', ['-p', prefix, '-c', file]);
  return serve('nginx', port, child, (i) => httpProtocol(`nginx ${i}`));
}

export async function startNode(stage: Stage, mib = 32): Promise<Server> {
  const port = await freePort();
  const script = path.join(programsDir, 'http-server.mjs');
  const child = stage.spawn(process.execPath, [script, String(port), String(mib)]);
  return serve('node', port, child, (i) => httpProtocol(`node ${i}`));
}

export async function startPython(stage: Stage, mib = 128): Promise<Server> {
  const port = await freePort();
  const script = path.join(programsDir, 'heap_server.py');
  const child = stage.spawn('/usr/bin/python3', [script, String(port), String(mib)]);
  return serve('python3', port, child, (i) => echoProtocol(`python ${i}`));
}

/** Rows 1 to `rows`, a transaction each, from a script that sqlite3 reads as its input. */
export async function startSqlite(
  stage: Stage,
  rows: number,
): Promise<{ readonly child: ChildProcess; readonly pid: number; readonly database: string }> {
  const database = stage.path('numbers.db');
  const script = stage.path('numbers.sql');
  const lines = ['.timeout 10000', 'CREATE TABLE numbers (n INTEGER PRIMARY KEY, work INTEGER);'];
  // Each row costs some milliseconds of computing, so that a script lasts.
  const work = 'WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 5000)';
  for (let n = 1; n <= rows; n++) {
    lines.push(`${work} INSERT INTO numbers SELECT ${n}, sum(x) FROM c;`);
  }
  await writeFile(script, `${lines.join('\n')}\n`);
  // The shell gives the script as standard input and is then replaced.
  const child = stage.spawn('/bin/sh', ['-c', `exec sqlite3 -bail ${database} < ${script}`]);
  await waitFor(
    async () => ((await readSqlite(stage, database))?.rows ?? 0) > 0,
    startMs,
    'sqlite3 writes no rows',
  );
  return { child, pid: child.pid ?? 0, database };
}

export interface SqliteState {
  readonly rows: number;
  readonly last: number;
  readonly integrity: string;
}

/** Undefined while the database cannot be read. */
export async function readSqlite(stage: Stage, database: string): Promise<SqliteState | undefined> {
  const query = 'SELECT count(*), coalesce(max(n), 0) FROM numbers; PRAGMA integrity_check;';
  const args = ['-readonly', '-cmd', '.timeout 10000', database, query];
  const { status, stdout } = await stage.run('sqlite3', args);
  const match = /^(\d+)\|(\d+)\n([^]*)$/.exec(stdout);
  if (status !== 0 || !match) return undefined;
  return { rows: Number(match[1]), last: Number(match[2]), integrity: match[3]?.trim() ?? '' };
}
