import t from 'tap';
import { RefillWatch } from '../../src/capture/paging-turns.js';

const keeper = { coldPages: 100, waitingUs: 0, storeTrouble: '' };

t.test('a refill that does not get on is told', (t) => {
  let nowMs = 1_000_000;
  const watch = new RefillWatch({ nowMs: () => nowMs });
  const after = (ms: number, change: Partial<typeof keeper>): string => {
    nowMs += ms;
    return watch.trouble({ ...keeper, ...change });
  };
  t.equal(after(0, {}), '');
  t.equal(after(4000, {}), '', 'not at once');
  t.match(after(2000, {}), /has not answered for 6 s/);
  t.equal(after(1000, { coldPages: 90 }), '', 'it gets on');
  t.match(after(500, { coldPages: 90, waitingUs: 7e6 }), /for 7 s/, 'a thread waits for long');
  t.equal(after(500, { coldPages: 90, storeTrouble: 'EIO' }), 'EIO', 'what it answers comes first');
  t.equal(after(60_000, { coldPages: 0 }), '', 'nothing is left to come');
  t.end();
});
