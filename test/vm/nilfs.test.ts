/** A log-structured volume with its cleaner, and after a crash: the fixture of the mirror. */
import t, { type Test } from 'tap';
import type { Bed } from './bed/bed.js';
import { until, type VmNode } from './bed/node.js';
import { crashWhileWriting, makeNilfs, mountNilfs } from './fixtures/nilfs.js';
import { mountPoint, unmountNilfs } from './fixtures/nilfs.js';
import { begin, note } from './findings.js';
import { kernels, onBed, short } from './on-bed.js';
import { patiently } from './bed/patience.js';

const cleaned = 'Snapshots and cleaner';
const crashed = 'Mounts after a crash, flushed records there';

/** Leaves the volume mounted. */
async function recovers(t: Test, bed: Bed, node: VmNode): Promise<void> {
  const flushed = await crashWhileWriting(bed, node);
  await mountNilfs(node, false);
  t.match(await node.sh('dmesg'), /recovery complete|mounting unchecked/, 'it was recovered');
  const lines = (await node.sh(`cat ${mountPoint}/records`)).split('\n').map(Number);
  t.ok(lines.length >= flushed, `${lines.length} records, ${flushed} were flushed`);
  const whole = Array.from({ length: lines.length }, (_, i) => i + 1);
  t.same(lines, whole, 'whole and in order');
}

for (const kernel of kernels) {
  t.test(`${kernel}: a NILFS2 volume`, { skip: short && 'short' }, (t) =>
    onBed(t, { kernel, nodes: 1 }, async (bed) => {
      const node = bed.node(1);
      begin(kernel, 'NILFS2', cleaned, crashed);
      await makeNilfs(node);
      await mountNilfs(node);
      t.equal((await node.run('pidof nilfs_cleanerd')).status, 0, 'its cleaner runs');
      await node.sh(`cd ${mountPoint}; echo one > file; sync; mkcp -s; echo two > file; sync`);
      const listed = await node.sh('lscp -s /dev/data');
      const snapshot = Number(listed.split('\n')[1]?.trim().split(/\s+/)[0]);
      t.ok(snapshot > 0, `snapshot ${snapshot}`);
      await node.sh(`mkdir -p /mnt/old; mount -t nilfs2 -o ro,cp=${snapshot} /dev/data /mnt/old`);
      t.equal(await node.sh('cat /mnt/old/file'), 'one', 'the snapshot has the old contents');
      await node.sh('umount /mnt/old');

      const segments = async (): Promise<number> =>
        Number(await node.sh('lssu /dev/data | tail -n +2 | wc -l'));
      const churn = `cd ${mountPoint}; dd if=/dev/zero of=churn bs=1M count=4 2>/dev/null; sync`;
      let most = 0;
      // It may have cleaned before anybody looked, and then only what is written anew.
      const gaveBack = async (): Promise<boolean> => {
        await node.sh(`${churn}; nilfs-clean -S 8/0.1 -p 0 -m 1 /dev/data`);
        const now = await segments();
        most = Math.max(most, now);
        return now < most;
      };
      await until(gaveBack, patiently(60_000), 'nothing is cleaned');
      t.pass('the cleaner gives segments back');
      note(kernel, 'NILFS2', cleaned, 'yes');

      await recovers(t, bed, node);
      t.equal(await node.sh(`cat ${mountPoint}/file`), 'two');
      await unmountNilfs(node);

      await makeNilfs(node, { blockBytes: 1024, segmentBlocks: 1024 });
      await mountNilfs(node);
      await recovers(t, bed, node);
      note(kernel, 'NILFS2', crashed, 'yes');
      await unmountNilfs(node);
    }),
  );
}
