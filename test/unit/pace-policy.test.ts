/** How often epochs are taken: pure, so costs go in and intervals come out. */
import t from 'tap';
import {
  costUs,
  firstPace,
  intervalMsMax,
  nextPace,
  type EpochCost,
  type Pace,
} from '../../src/capture/pace-policy.js';

const targets = { intervalMs: 100, overhead: 0.05, maxPauseMs: 50 };
const manyProcessors = 64;

/** Epochs of a load whose written pages grow with the interval up to its working set. */
function settle(pagesPerMs: number, workingSet: number, epochs: number): Pace {
  let pace = firstPace(targets);
  for (let i = 0; i < epochs; i++) {
    const dirtyPages = Math.min(workingSet, pagesPerMs * pace.intervalMs);
    const pauseUs = 500 + dirtyPages;
    const cost = {
      pauseUs,
      cpuUs: pauseUs * 2,
      dirtyPages,
      elapsedMs: pace.intervalMs,
      abandoned: false,
    };
    pace = nextPace(targets, pace, cost, 2);
  }
  return pace;
}

t.test('a cheap epoch keeps the interval that was asked for', (t) => {
  const pace = settle(0.1, 100, 10);
  t.equal(pace.intervalMs, 100);
  t.equal(pace.bound, 'asked');
  t.match(pace.why, /as asked: an epoch costs the primary .*, within its budget of 5\.0%/);
  t.ok(pace.overheadUsed < 0.05);
  t.end();
});

t.test('the interval stretches until the cost fits the budget, and comes back after', (t) => {
  const busy = settle(50, 100_000, 60);
  t.equal(busy.bound, 'budget');
  t.ok(busy.intervalMs > 2000 && busy.intervalMs < intervalMsMax, String(busy.intervalMs));
  t.ok(busy.overheadUsed < 0.055, `uses ${busy.overheadUsed}`);
  t.match(busy.why, /stretched from 100 ms/);
  let pace = busy;
  const calm: EpochCost = {
    pauseUs: 300,
    cpuUs: 300,
    dirtyPages: 10,
    elapsedMs: 100,
    abandoned: false,
  };
  let epochs = 0;
  while (pace.intervalMs > 100 && epochs < 50) {
    pace = nextPace(targets, pace, calm, 2);
    epochs++;
  }
  t.equal(pace.intervalMs, 100);
  t.ok(epochs < 20, `came back after ${epochs} epochs`);
  t.end();
});

t.test('what is spent is paid back before more is, from the first epoch on', (t) => {
  let pace = firstPace(targets);
  let nowMs = 0;
  let spentMs = 0;
  while (nowMs < 30_000) {
    nowMs += pace.intervalMs;
    t.ok(spentMs <= 0.055 * nowMs, `${spentMs} ms spent in ${nowMs} ms`);
    const dirtyPages = Math.min(100_000, 90 * pace.intervalMs);
    const pauseUs = 500 + Math.min(dirtyPages, 512);
    const cpuUs = pauseUs + 3 * dirtyPages;
    const cost = { pauseUs, cpuUs, dirtyPages, elapsedMs: pace.intervalMs, abandoned: false };
    spentMs += costUs(cost, 2) / 1000;
    pace = nextPace(targets, pace, cost, 2);
  }
  t.end();
});

t.test('an abandoned epoch does not make epochs look cheap', (t) => {
  const before = { ...firstPace(targets), intervalMs: 2000, costUs: 100_000 };
  const cost = { pauseUs: 300, cpuUs: 300, dirtyPages: 0, elapsedMs: 2000, abandoned: true };
  t.equal(nextPace(targets, before, cost, 2).intervalMs, 2000);
  t.end();
});

t.test('one outlier moves the interval by a bounded factor', (t) => {
  const outlier = { pauseUs: 5_000_000, cpuUs: 0, dirtyPages: 0, elapsedMs: 100, abandoned: false };
  const pace = nextPace(targets, { ...firstPace(targets), costUs: 500 }, outlier, manyProcessors);
  t.ok(pace.intervalMs <= 400);
  t.end();
});

t.test('a load over any budget stops at the longest interval and says so', (t) => {
  const pace = settle(1000, 50_000_000, 30);
  t.equal(pace.bound, 'ceiling');
  t.equal(pace.intervalMs, intervalMsMax);
  t.match(pace.why, /more than its budget of 5\.0%/);
  t.end();
});

t.test('a pause over the limit shortens the interval as far as the budget allows', (t) => {
  const generous = { intervalMs: 5000, overhead: 0.5, maxPauseMs: 10 };
  const long = { pauseUs: 20_000, cpuUs: 0, dirtyPages: 0, elapsedMs: 5000, abandoned: false };
  const shorter = nextPace(generous, firstPace(generous), long, manyProcessors);
  t.equal(shorter.bound, 'pause');
  t.equal(shorter.intervalMs, 2500);
  t.match(shorter.why, /over the limit of 10\.0 ms/);
  const tight = { ...targets, maxPauseMs: 10 };
  const held = nextPace(tight, firstPace(tight), long, manyProcessors);
  t.equal(held.bound, 'budget');
  t.match(held.why, /which the budget does not let shrink/);
  t.end();
});

t.test('copying beside the primary counts as far as processors are short', (t) => {
  const cost = { pauseUs: 1000, cpuUs: 5000, dirtyPages: 0, elapsedMs: 100, abandoned: false };
  t.equal(costUs(cost, 2), 5000);
  t.equal(costUs(cost, 4), 3000);
  t.equal(costUs({ ...cost, dirtyPages: 1000 }, 2), 7000, 'the write faults are its own');
  t.end();
});
