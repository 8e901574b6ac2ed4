/** What is said before `promote --force`. */
import t from 'tap';
import type { StandbyStatus } from '../../src/api/schema.js';
import { lossOf } from '../../src/cli/confirm-force.js';

const standby: StandbyStatus = {
  ...{ name: 'db', node: 'a', state: 'cut off', epoch: 7, generation: 2, residentBytes: 1 },
  ...{ lagMs: 3200, reason: 'the connection ended' },
};

t.test('what is lost', (t) => {
  const lost = 'db: epoch 7 of node a, committed 3.20 s ago: what was done since is lost';
  t.same(lossOf(standby), [lost]);
  const runs = 'db: node a still sends epochs: it runs there';
  t.same(lossOf({ ...standby, state: 'standby' }), [lost, runs]);
  t.same(lossOf({ ...standby, epoch: 0 }), [], 'there is nothing to promote');
  t.end();
});
