/** The kernel's NFS server and client on real nodes: the fixture of the page store. */
import { setTimeout as pause } from 'node:timers/promises';
import t, { type Test } from 'tap';
import type { Bed } from './bed/bed.js';
import { until, type VmNode } from './bed/node.js';
import { mountNfs, serveNfs } from './fixtures/nfs.js';
import { begin, note } from './findings.js';
import { kernels, onBed, short } from './on-bed.js';
import { patiently } from './bed/patience.js';

const backMs = patiently(180_000);
/** How long a plain look must go on missing a name, at the least, to show what it is about. */
const hiddenMs = 2000;

for (const kernel of kernels) {
  t.test(`${kernel}: what one node writes another reads, over NFS`, (t) =>
    onBed(t, { kernel, nodes: 2 }, async (bed) => {
      const [server, client] = [bed.node(1), bed.node(2)];
      const share = await serveNfs(server);
      for (const version of short ? (['4.2'] as const) : (['4.2', '3'] as const)) {
        begin(kernel, 'NFS', `Version ${version}`);
        // Names that are not there are remembered for an hour, so that only the look can end that.
        const where = await mountNfs(client, share, version, 'acdirmin=3600,acdirmax=3600');
        t.match(await client.sh(`grep ' ${where} ' /proc/mounts`), `vers=${version}`);
        await client.sh(`dd if=/dev/urandom of=${where}/v${version} bs=64k count=16 conv=fsync`);
        const sum = `sha256sum <`;
        t.equal(
          await server.sh(`${sum} ${share.folder}/v${version}`),
          await client.sh(`${sum} ${where}/v${version}`),
          `version ${version}: what was flushed is on the server`,
        );
        const names = await showsNewNames(t, server, client, share.folder, where);
        note(kernel, 'NFS', `Version ${version}`, `mounts, ${names}`);
      }
    }),
  );
}

/**
 * A client that has looked for a name in vain may go on not seeing it. A look at the *directory* that
 * must ask the server ends that: what a reader of the store has to do.
 */
async function showsNewNames(
  t: Test,
  server: VmNode,
  client: VmNode,
  folder: string,
  where: string,
): Promise<string> {
  await client.sh(`ls ${where} >/dev/null; ! test -e ${where}/new`);
  await server.sh(`echo here > ${folder}/new`);
  await pause(hiddenMs);
  const seen = await client.run(`test -e ${where}/new`);
  // stat -c with --cached=never asks with AT_STATX_FORCE_SYNC.
  const look = await client.run(`stat --cached=never ${where} >/dev/null && test -e ${where}/new`);
  t.equal(look.status, 0, 'after one forced look at the directory the new name is there');
  await client.sh(`rm ${where}/new`);
  const before = seen.status === 0 ? 'seen at once' : 'hidden from a plain look';
  return `new names ${before}, ${look.status === 0 ? 'seen' : '**not seen**'} after a forced look at the directory`;
}

/** The short run has one crash. */
const leftOut = (kernel: string): string | false => short && kernel !== '6.12' && 'short';

for (const kernel of kernels) {
  t.test(`${kernel}: the server crashes and comes back`, { skip: leftOut(kernel) }, (t) =>
    onBed(t, { kernel, nodes: 2 }, (bed) => survivesCrash(t, bed)),
  );
}

async function survivesCrash(t: Test, bed: Bed): Promise<void> {
  const [server, client] = [bed.node(1), bed.node(2)];
  const share = await serveNfs(server);
  const where = await mountNfs(client, share, '4.2');
  const soft = await mountNfs(client, share, '3', 'soft,timeo=20,retrans=1');
  await client.sh(`echo before > ${where}/kept; sync ${where}/kept; ls ${soft} >/dev/null`);
  await server.crash();
  await client.sh(
    `(echo after > ${where}/late && sync ${where}/late; echo $? > /tmp/late) >/dev/null 2>&1 &`,
  );
  const failed = await client.run(`cat ${soft}/never`, { limitMs: patiently(120_000) });
  t.not(failed.status, 0, 'a soft mount fails');
  t.equal((await client.run('test -e /tmp/late')).status, 1, 'a hard mount waits');
  await bed.start(1);
  await serveNfs(server);
  await until(
    async () => (await client.run('cat /tmp/late')).stdout.trim() === '0',
    backMs,
    'the write that waited does not end',
  );
  t.equal(await server.sh(`cat ${share.folder}/kept`), 'before');
  t.equal(await server.sh(`cat ${share.folder}/late`), 'after', 'what waited has arrived');
}
