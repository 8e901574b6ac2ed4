/** A process that dies stays at its exit stop, also when it is killed again: death capture needs it. */
import t from 'tap';
import { begin, note } from './findings.js';
import { kernels, onBed, short } from './on-bed.js';

const program = '/opt/replpage/test/support/tools/build/exit_stop';
const ways = [
  ['a second SIGKILL', `${program} signal`],
  ['a second cgroup.kill', `${program} cgroup /sys/fs/cgroup/exit-stop`],
] as const;

for (const kernel of kernels) {
  t.test(`${kernel}: at its exit stop, killed again`, { skip: short && 'short' }, (t) =>
    onBed(t, { kernel, nodes: 1 }, async (bed) => {
      for (const [name, command] of ways) {
        begin(kernel, 'Dying processes', `Exit stop after ${name}`);
        const { status, stdout, stderr } = await bed.node(1).run(command);
        t.equal(status, 0, `${name}: ${stdout}${stderr}`);
        if (status === 0) note(kernel, 'Dying processes', `Exit stop after ${name}`, stdout.trim());
      }
    }),
  );
}
