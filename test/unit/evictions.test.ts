/** What `replpage evict` orders, turn by turn. */
import t from 'tap';
import { Evictions } from '../../src/capture/evict-request.js';
import type { PagingReport } from '../../src/native/group.js';

function report(change: Partial<PagingReport>): PagingReport {
  const quiet = { samples: 3, sampleUs: 0, periodUs: 1000, sampleShare: 0, tracker: 'page-walk' };
  const bytes = { residentBytes: 0, coldBytes: 0, absentBytes: 0, pendingBytes: 0 };
  const moved = { writtenBytes: 0, evictedBytes: 0, broughtBackBytes: 0, movedBytes: 0 };
  const store = { store: 'ok', trouble: '', storeBytes: 0, storeSegments: 0 } as const;
  const rest = {
    candidateBytes: 0,
    ages: [],
    touchedAgain: [],
    tableBytes: 0,
    pagerCpuUs: 0,
    pagerPid: 1,
  };
  return { ...quiet, ...bytes, ...moved, ...store, ...rest, ...change };
}

/** Lets it look at what is in use at present. */
function sampled(evictions: Evictions, evictedBytes = 0): number {
  let samples = 0;
  let turns = 0;
  while (samples < 2) {
    const order = evictions.order(report({ ages: [5, 7, 2], evictedBytes }));
    if (order?.evictPagesMax !== 0) throw new Error('pages leave before it has looked');
    if (order?.sampleNow === true) samples++;
    turns++;
  }
  return turns;
}

t.test('all that was not touched in the last sample leaves, nothing else', async (t) => {
  const evictions = new Evictions();
  t.equal(evictions.order(report({ ages: [5, 7] })), undefined, 'nobody asked');
  const asked = evictions.ask();
  t.ok(sampled(evictions, 100) > 10, 'with time between the samples');
  t.match(evictions.order(report({ ages: [5, 7, 2], evictedBytes: 100 })), {
    evictAge: 1,
    evictPagesMax: 9,
    bringBackPagesMax: 0,
  });
  t.ok(evictions.order(report({ ages: [5], pendingBytes: 8192, evictedBytes: 100 })));
  t.equal(evictions.order(report({ ages: [5], evictedBytes: 900, coldBytes: 900 })), undefined);
  t.match(await asked, { evictedBytes: 800, coldBytes: 900 });
});

t.test('a store in trouble, or the end of the group, answers', async (t) => {
  const evictions = new Evictions();
  const full = evictions.ask();
  t.equal(evictions.order(report({ store: 'full', trouble: 'no room', ages: [0, 1] })), undefined);
  await t.rejects(full, { code: 'ERR_STORE', message: /no room/ });
  const later = evictions.ask();
  evictions.fail('it has gone');
  await t.rejects(later, { code: 'ERR_STORE' });
});

t.test('what never leaves is not waited for', async (t) => {
  const evictions = new Evictions();
  const asked = evictions.ask();
  sampled(evictions, 50);
  let turns = 0;
  while (evictions.order(report({ ages: [0, 1], evictedBytes: 50 })) !== undefined) turns++;
  t.ok(turns > 10 && turns < 1000);
  t.match(await asked, { evictedBytes: 0 });
});
