/** Which pages leave a replica's RAM: pure, so a model of a program's memory is enough. */
import t from 'tap';
import type { PagingReport } from '../../src/native/group.js';
import { pagingPlanner } from '../../src/paging/planner.js';
import {
  creditShare,
  firstPagingState,
  floorSamples,
  formatRam,
  hysteresis,
  nextPagingOrder,
  parseRam,
  type PagingOrder,
  type PagingSeen,
  type PagingState,
  type RamSetting,
  type StoreCondition,
} from '../../src/paging/policy.js';

const pageBytes = 4096;
const periodMs = 5000;
const agesMax = 255;

/** Numbers that are the same in every run. */
function randomOf(seed: number): () => number {
  let state = Math.imul(seed, 2_654_435_761) >>> 0;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

/** A replica whose orders are carried out at once, one tick a sample. */
class Model {
  readonly pages: number;
  readonly setting: RamSetting;
  readonly ages: Uint8Array;
  readonly cold: Uint8Array;
  readonly again: Uint8Array;
  state: PagingState = firstPagingState;
  store: StoreCondition = 'ok';
  evicted = 0;
  broughtBack = 0;
  order: PagingOrder | undefined;

  constructor(pages: number, setting: RamSetting) {
    this.pages = pages;
    this.setting = setting;
    this.ages = new Uint8Array(pages);
    this.cold = new Uint8Array(pages);
    this.again = new Uint8Array(pages);
  }

  get resident(): number {
    return this.cold.reduce((sum, cold) => sum + 1 - cold, 0);
  }

  touch(page: number, written = false): void {
    this.ages[page] = 0;
    if (written) this.cold[page] = this.again[page] = 0;
    else if (this.cold[page] === 1) this.again[page] = 1;
  }

  seen(): PagingSeen {
    const ages = new Array<number>(agesMax + 1).fill(0);
    const touchedAgain = new Array<number>(agesMax + 1).fill(0);
    for (let page = 0; page < this.pages; page++) {
      const age = this.ages[page] ?? 0;
      if (this.cold[page] === 0) ages[age] = (ages[age] ?? 0) + 1;
      if (this.again[page] === 1) touchedAgain[age] = (touchedAgain[age] ?? 0) + 1;
    }
    const resident = this.resident;
    return {
      ages,
      touchedAgain,
      residentBytes: resident * pageBytes,
      coldBytes: (this.pages - resident) * pageBytes,
      pendingBytes: 0,
      evictedBytes: this.evicted * pageBytes,
      samplePeriodMs: periodMs,
      store: this.store,
      elapsedMs: periodMs,
    };
  }

  /** A sample: all get older, `touches` touches some, the policy orders. */
  tick(touches: () => void): PagingOrder {
    for (let page = 0; page < this.pages; page++) {
      this.ages[page] = Math.min(agesMax, (this.ages[page] ?? 0) + 1);
    }
    touches();
    const { order, state } = nextPagingOrder(this.setting, this.state, this.seen());
    this.state = state;
    let evict = order.evictPagesMax;
    let back = order.bringBackPagesMax;
    for (let page = 0; page < this.pages; page++) {
      const age = this.ages[page] ?? 0;
      if (this.cold[page] === 0 && evict > 0 && age >= order.evictAge) {
        this.cold[page] = 1;
        this.evicted++;
        evict--;
      } else if (this.again[page] === 1 && back > 0 && age <= order.bringBackAge) {
        this.cold[page] = this.again[page] = this.ages[page] = 0;
        this.broughtBack++;
        back--;
      }
    }
    this.order = order;
    return order;
  }

  touchRange(first: number, count: number, written = false): void {
    for (let page = first; page < first + count; page++) this.touch(page % this.pages, written);
  }
}

t.test('amounts of memory', (t) => {
  t.same(parseRam('all', 1), { kind: 'all' });
  t.same(parseRam('100%', 1), { kind: 'all' });
  t.same(parseRam(' hot ', 30_000), { kind: 'hot', coldAfterMs: 30_000 });
  t.same(parseRam('30%', 1), { kind: 'percent', share: 0.3 });
  t.equal(formatRam({ kind: 'percent', share: 0.3 }), '30.0%');
  t.equal(formatRam({ kind: 'all' }), 'all');
  for (const wrong of ['', '0%', '101%', '30', 'cold', '-5%', '1e3%', 'hot!', '2GiB']) {
    t.throws(() => parseRam(wrong, 1), { code: 'ERR_USAGE', advice: /hot, all, or a percentage/ });
  }
  t.end();
});

t.test('all: nothing leaves', (t) => {
  const model = new Model(10_000, { kind: 'all' });
  for (let i = 0; i < 100; i++) t.equal(model.tick(() => undefined).evictPagesMax, 0);
  t.match(model.order?.reason, /all pages stay/);
  t.end();
});

t.test('hot: what was untouched for the time leaves, all of it and nothing else', (t) => {
  const model = new Model(50_000, { kind: 'hot', coldAfterMs: 30_000 });
  for (let tick = 1; tick < 6; tick++) {
    model.tick(() => model.touchRange(0, 15_000));
    t.equal(model.evicted, 0, `after ${tick} samples`);
  }
  for (let tick = 0; tick < 20; tick++) model.tick(() => model.touchRange(0, 15_000));
  t.equal(model.resident, 15_000);
  t.match(model.order?.reason, /touched within 30\.0 s/);
  t.end();
});

t.test('hot: a program that goes over all of its memory now and then does not thrash', (t) => {
  const model = new Model(20_000, { kind: 'hot', coldAfterMs: 30_000 });
  const ticks = 240;
  for (let tick = 0; tick < ticks; tick++) {
    model.tick(() => model.touchRange(0, tick % 24 === 0 ? 20_000 : 2000));
  }
  t.ok(model.broughtBack <= ticks * creditShare * 20_000 + 1, `${model.broughtBack} came back`);
  t.ok(model.evicted <= 20_000 + model.broughtBack);
  t.end();
});

t.test('a share: coldest first, down to the target, then nothing', (t) => {
  const model = new Model(50_000, { kind: 'percent', share: 0.3 });
  const random = randomOf(1);
  // The higher the page, the seldomer it is touched.
  const touches = (): void => {
    for (let page = 0; page < 50_000; page += 1 + Math.floor(random() * 2)) {
      if (random() < (5000 / (page + 1)) ** 2) model.touch(page);
    }
  };
  for (let tick = 0; tick < 60; tick++) model.tick(touches);
  const target = 0.3 * 50_000;
  const slack = hysteresis * 50_000;
  t.ok(Math.abs(model.resident - target) <= slack, `${model.resident} of ${target} are in RAM`);
  let hot = 0;
  for (let page = 0; page < 5000; page++) hot += 1 - (model.cold[page] ?? 0);
  t.ok(hot > 4900, `${hot} of the 5000 hottest`);
  const before = model.evicted + model.broughtBack;
  for (let tick = 0; tick < 100; tick++) model.tick(touches);
  const moved = (model.evicted + model.broughtBack - before) / 100;
  t.ok(moved <= 2 * creditShare * 50_000, `${moved} pages a tick afterwards`);
  t.end();
});

t.test('a share: nothing young leaves, and the reason says so', (t) => {
  const model = new Model(50_000, { kind: 'percent', share: 0.3 });
  for (let tick = 0; tick < 50; tick++) model.tick(() => model.touchRange(0, 40_000));
  t.ok(model.resident >= 40_000, `${model.resident} in RAM`);
  t.match(model.order?.reason, /working set is larger than 30\.0% of 195 MiB, by/);
  t.end();
});

t.test('a share: at most the floor is taken in any tick', (t) => {
  for (let seed = 1; seed <= 8; seed++) {
    const random = randomOf(seed);
    const model = new Model(10_000, { kind: 'percent', share: 0.1 + 0.8 * random() });
    for (let tick = 0; tick < 60; tick++) {
      const order = model.tick(() => {
        for (let i = 0; i < 3000; i++) model.touch(Math.floor(random() ** 3 * 10_000));
      });
      if (order.evictPagesMax > 0 && order.evictAge < floorSamples) t.fail(`seed ${seed}`);
    }
  }
  t.pass('8 loads');
  t.end();
});

t.test('a share: no load makes it thrash', (t) => {
  for (let seed = 1; seed <= 12; seed++) {
    const random = randomOf(seed * 77);
    const pages = 10_000;
    const model = new Model(pages, { kind: 'percent', share: 0.2 + 0.5 * random() });
    // A window that moves, and whose pages are read or written, comes around every so many ticks.
    const window = Math.floor(pages * (0.1 + 0.6 * random()));
    const step = Math.floor(pages / (2 + random() * 40));
    const written = seed % 2 === 0;
    let at = 0;
    let before = 0;
    const ticks = 400;
    for (let tick = 0; tick < ticks; tick++) {
      model.tick(() => model.touchRange((at += step), window, written));
      if (tick === ticks / 2) before = model.evicted + model.broughtBack;
    }
    const moved = (model.evicted + model.broughtBack - before) / (ticks / 2) / pages;
    const load = `window ${window}, step ${step}, ${written ? 'written' : 'read'}`;
    const percent = (moved * 100).toFixed(2);
    t.ok(
      moved <= 0.02,
      `${load}: ${percent} % of the pages a tick, patience ${model.state.patience}`,
    );
  }
  t.end();
});

t.test(
  'a share: what is touched again comes back where there is room, or instead of colder',
  (t) => {
    const model = new Model(50_000, { kind: 'percent', share: 0.3 });
    for (let tick = 0; tick < 60; tick++) model.tick(() => model.touchRange(0, 10_000));
    const resident = model.resident;
    t.ok(Math.abs(resident - 15_000) <= 500, `${resident} in RAM`);
    for (let tick = 0; tick < 60; tick++) model.tick(() => model.touchRange(40_000, 10_000));
    let back = 0;
    for (let page = 40_000; page < 50_000; page++) back += 1 - (model.cold[page] ?? 0);
    t.ok(back > 9000, `${back} of the new working set are in RAM`);
    t.ok(model.resident <= 15_500);
    t.end();
  },
);

t.test('without a store that takes them pages stay', (t) => {
  for (const store of ['none', 'opening', 'full', 'hung', 'failing'] as const) {
    const model = new Model(20_000, { kind: 'percent', share: 0.3 });
    model.store = store;
    for (let tick = 0; tick < 30; tick++) t.equal(model.tick(() => undefined).evictPagesMax, 0);
    t.match(model.order?.reason, /pages stay in RAM: /);
  }
  t.end();
});

t.test('a group without pages gets no orders', (t) => {
  const model = new Model(0, { kind: 'percent', share: 0.3 });
  const order = model.tick(() => undefined);
  t.same([order.evictPagesMax, order.bringBackPagesMax], [0, 0]);
  t.end();
});

t.test('the planner asks the policy with what the native side reports', (t) => {
  let nowMs = 1000;
  const clock = { nowMs: () => nowMs };
  t.equal(pagingPlanner('all', 30_000, clock), undefined);
  t.throws(() => pagingPlanner('much', 30_000, clock), { code: 'ERR_USAGE' });
  const plan = pagingPlanner('hot', 30_000, clock);
  const report = {
    ages: Array.from({ length: agesMax + 1 }, (_, age) => (age === 100 ? 50_000 : 0)),
    touchedAgain: new Array<number>(agesMax + 1).fill(0),
    residentBytes: 50_000 * pageBytes,
    coldBytes: 0,
    pendingBytes: 0,
    evictedBytes: 0,
    periodUs: periodMs * 1000,
    store: 'ok',
  } as unknown as PagingReport;
  nowMs += 2 * periodMs;
  t.match(plan?.(report), { evictAge: 6, evictPagesMax: 10_000, bringBackPagesMax: 0 });
  nowMs += 250;
  t.match(plan?.(report), { evictAge: 6, evictPagesMax: 4096 });
  t.end();
});
