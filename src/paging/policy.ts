/**
 * Which pages of a replica leave its RAM, and which come back. Pure: what the process state table
 * says goes in, an order for the native side comes out. Three settings:
 *
 * - `all`: nothing leaves.
 * - `hot`: what was not touched for a time leaves.
 * - a share: the coldest pages leave until the rest fits, however warm they are, down to a floor.
 *
 * What comes back has been touched again, and only as fast as credit grows: a program that goes over
 * all of its memory now and then would have everything evicted and brought back each time. For a
 * share young pages leave on credit only, and what counts as young grows while most of what leaves
 * is written again before long: that working set does not fit, and paging it helps nobody.
 */
import { ReplicationError } from '../base/errors.js';
import { formatBytes, formatMs, formatPercent, parsePercent } from '../base/units.js';

export type RamSetting =
  | { readonly kind: 'all' }
  | { readonly kind: 'hot'; readonly coldAfterMs: number }
  /** Share of the pages that the replica keeps in RAM, 0 to 1. */
  | { readonly kind: 'percent'; readonly share: number };

export type StoreCondition = 'none' | 'opening' | 'ok' | 'full' | 'hung' | 'failing';

export interface PagingSeen {
  /** Pages that may be evicted, by samples since their last touch; the last counts all beyond. */
  readonly ages: readonly number[];
  /** Cold pages that were touched since, likewise. */
  readonly touchedAgain: readonly number[];
  readonly residentBytes: number;
  readonly coldBytes: number;
  /** Of the resident ones: on their way out. */
  readonly pendingBytes: number;
  /** That became cold since the start, in all. */
  readonly evictedBytes: number;
  readonly samplePeriodMs: number;
  readonly store: StoreCondition;
  /** Since the last order. */
  readonly elapsedMs: number;
}

export interface PagingOrder {
  /** Evict what was not touched for at least so many samples, */
  readonly evictAge: number;
  /** and at most so many pages; 0: none. */
  readonly evictPagesMax: number;
  /** Bring back what was touched at most so many samples ago, */
  readonly bringBackAge: number;
  readonly bringBackPagesMax: number;
  /** For `status`: what was decided and why. */
  readonly reason: string;
}

/** What one order leaves for the next. */
export interface PagingState {
  /** Pages that may be brought back. */
  readonly creditPages: number;
  /** Samples that a page must not have been touched to leave for a share without credit. */
  readonly patience: number;
  /** Pages that became cold lately, and that were cold and are not any more. */
  readonly left: number;
  readonly returned: number;
  readonly coldBytes: number;
  readonly evictedBytes: number;
}

/** A page touched within so many samples leaves for a share only with credit. */
export const patienceMin = 6;

export const firstPagingState: PagingState = {
  creditPages: 0,
  patience: patienceMin,
  left: 0,
  returned: 0,
  coldBytes: 0,
  evictedBytes: 0,
};

const pageBytes = 4096;

/** Pages touched within the last sample or the one before it never leave for a share. */
export const floorSamples = 2;
/** Of all pages: so far from its target a share is left as it is. */
export const hysteresis = 0.01;
/** Of all pages, in one sample period. */
const evictShare = 0.1;
const evictPagesMin = 4096;
/** Credit grows by so much in one sample period, to at most so much, of all pages. */
export const creditShare = 0.005;
export const creditShareMax = 0.05;
/** A page comes back in the place of another that was not touched for so many samples longer. */
const exchangeSamples = 12;
/** Sample periods after which what left and returned counts for a third. */
const memoryPeriods = 12;
const patienceMax = 120;

const idle = { evictAge: 0, evictPagesMax: 0, bringBackAge: 0, bringBackPagesMax: 0 } as const;

/** "hot", "all", "30%". Throws ERR_USAGE. */
export function parseRam(text: string, coldAfterMs: number): RamSetting {
  const word = text.trim();
  if (word === 'all') return { kind: 'all' };
  if (word === 'hot') return { kind: 'hot', coldAfterMs };
  try {
    const share = parsePercent(word);
    return share === 1 ? { kind: 'all' } : { kind: 'percent', share };
  } catch (error) {
    if (!(error instanceof ReplicationError)) throw error;
    throw new ReplicationError('ERR_USAGE', `"${text}" is not an amount of memory`, {
      advice: 'write hot, all, or a percentage above 0% and up to 100%, such as 30%',
      cause: error,
    });
  }
}

/** As the user typed it, nearly. */
export function formatRam(setting: RamSetting): string {
  return setting.kind === 'percent' ? formatPercent(setting.share) : setting.kind;
}

export function nextPagingOrder(
  setting: RamSetting,
  state: PagingState,
  seen: PagingSeen,
): { readonly order: PagingOrder; readonly state: PagingState } {
  const total = (seen.residentBytes + seen.coldBytes) / pageBytes;
  const periods = seen.samplePeriodMs > 0 ? seen.elapsedMs / seen.samplePeriodMs : 0;
  const earned = Math.min(
    state.creditPages + total * creditShare * periods,
    total * creditShareMax,
  );
  const learnt = learn(state, seen, total, periods);
  const order = withStore(
    decide(setting, seen, total, {
      evict: Math.floor(Math.max(evictPagesMin, total * evictShare * periods)),
      credit: Math.floor(earned),
      patience: Math.round(learnt.patience),
    }),
    seen.store,
  );
  const young =
    setting.kind === 'percent' && order.evictAge < learnt.patience ? order.evictPagesMax : 0;
  const creditPages = Math.max(0, earned - order.bringBackPagesMax - young);
  return { order, state: { ...learnt, creditPages } };
}

interface Limits {
  /** Pages that may leave. */
  readonly evict: number;
  /** Pages that may come back, or leave though they are young. */
  readonly credit: number;
  readonly patience: number;
}

/** Whether what left stayed away. */
function learn(state: PagingState, seen: PagingSeen, total: number, periods: number): PagingState {
  const fading = Math.exp(-periods / memoryPeriods);
  const left = Math.max(0, seen.evictedBytes - state.evictedBytes) / pageBytes;
  const more = (seen.coldBytes - state.coldBytes) / pageBytes;
  const next = {
    ...state,
    left: state.left * fading + left,
    returned: state.returned * fading + Math.max(0, left - more),
    coldBytes: seen.coldBytes,
    evictedBytes: seen.evictedBytes,
  };
  if (next.returned > Math.max(next.left / 2, total * 2 * hysteresis)) {
    return { ...next, left: 0, returned: 0, patience: Math.min(patienceMax, state.patience * 2) };
  }
  const calm = next.returned * 10 < Math.max(next.left, total * hysteresis);
  const patience = calm ? state.patience * Math.exp(-periods / 100) : state.patience;
  return { ...next, patience: Math.max(patienceMin, patience) };
}

function decide(setting: RamSetting, seen: PagingSeen, total: number, limits: Limits): PagingOrder {
  switch (setting.kind) {
    case 'all':
      return {
        ...idle,
        ...bringBack(seen, limits.credit, seen.touchedAgain.length - 1),
        reason: 'all pages stay in RAM',
      };
    case 'hot':
      return decideHot(setting.coldAfterMs, seen, limits);
    case 'percent':
      return decideShare(setting.share, seen, total, limits);
  }
}

/** A page of age n was not touched in n samples: for at least n periods, if not for n + 1. */
function decideHot(coldAfterMs: number, seen: PagingSeen, limits: Limits): PagingOrder {
  const oldest = seen.ages.length - 1;
  const samples = Math.ceil(coldAfterMs / Math.max(1, seen.samplePeriodMs));
  const evictAge = Math.min(oldest, Math.max(1, samples));
  const pages = countFrom(seen.ages, evictAge);
  const evictPagesMax = Math.min(pages, limits.evict);
  return {
    ...bringBack(seen, limits.credit, evictAge - 1),
    evictAge,
    evictPagesMax,
    reason:
      pages === 0
        ? `all in RAM was touched within ${formatMs(coldAfterMs)}`
        : `${size(pages)} was not touched for ${formatMs(coldAfterMs)}`,
  };
}

function decideShare(share: number, seen: PagingSeen, total: number, limits: Limits): PagingOrder {
  const target = Math.floor(total * share);
  const staying = (seen.residentBytes - seen.pendingBytes) / pageBytes;
  const slack = total * hysteresis;
  const aim = `${formatPercent(share)} of ${size(total)}`;
  if (staying - target > slack) return evictDownTo(target, staying, seen, limits, aim);
  if (target - staying > slack) {
    const room = Math.min(limits.credit, Math.floor(target - staying));
    const order = { ...idle, ...bringBack(seen, room, seen.touchedAgain.length - 1) };
    return { ...order, reason: `${size(staying)} in RAM, below ${aim}` };
  }
  return exchange(seen, limits, `${size(staying)} in RAM, about ${aim}`);
}

/** Coldest first: a step takes the youngest age in only when what is older is not half of it. */
function evictDownTo(
  target: number,
  staying: number,
  seen: PagingSeen,
  limits: Limits,
  aim: string,
): PagingOrder {
  const need = Math.ceil(staying - target);
  let age = seen.ages.length - 1;
  let pages = seen.ages[age] ?? 0;
  while (age > limits.patience && pages < need) pages += seen.ages[--age] ?? 0;
  const older = pages - (seen.ages[age] ?? 0);
  if (pages >= need && older * 2 >= need) ++age;
  const settled = countFrom(seen.ages, age);
  if (settled > 0) {
    const evictPagesMax = Math.min(need, settled, limits.evict);
    return { ...idle, evictAge: age, evictPagesMax, reason: `${size(need)} more than ${aim}` };
  }
  while (age > floorSamples && pages < need) pages += seen.ages[--age] ?? 0;
  return {
    ...idle,
    evictAge: age,
    evictPagesMax: Math.min(need, pages, limits.credit, limits.evict),
    reason: `the working set is larger than ${aim}, by ${size(need)}`,
  };
}

/** At the target a page comes back in the place of one that is much colder. */
function exchange(seen: PagingSeen, limits: Limits, reason: string): PagingOrder {
  const back = bringBack(seen, limits.credit, 1);
  const evictAge = back.bringBackAge + exchangeSamples;
  const evictPagesMax = Math.min(back.bringBackPagesMax, countFrom(seen.ages, evictAge));
  if (evictPagesMax === 0) return { ...idle, reason };
  return { ...back, bringBackPagesMax: evictPagesMax, evictAge, evictPagesMax, reason };
}

/** The most recently touched first. */
function bringBack(
  seen: PagingSeen,
  limit: number,
  ageMax: number,
): Pick<PagingOrder, 'bringBackAge' | 'bringBackPagesMax'> {
  let age = 0;
  let pages = seen.touchedAgain[0] ?? 0;
  while (age < ageMax && pages < limit) pages += seen.touchedAgain[++age] ?? 0;
  return { bringBackAge: age, bringBackPagesMax: Math.max(0, Math.min(pages, limit)) };
}

/** What comes back is read from the primary, so it needs no store. */
function withStore(order: PagingOrder, store: StoreCondition): PagingOrder {
  if (store === 'ok' || order.evictPagesMax === 0) return order;
  const why: Readonly<Record<Exclude<StoreCondition, 'ok'>, string>> = {
    none: 'there is no page store',
    opening: 'the page store is not open yet',
    full: 'the page store is full',
    hung: 'the page store does not answer',
    failing: 'the page store fails',
  };
  return { ...order, evictPagesMax: 0, reason: `pages stay in RAM: ${why[store]}` };
}

function countFrom(ages: readonly number[], first: number): number {
  return ages.slice(first).reduce((sum, pages) => sum + pages, 0);
}

const size = (pages: number): string => formatBytes(Math.round(pages) * pageBytes);
