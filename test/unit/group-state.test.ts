/** The life of a group as a pure machine, and how deaths are told. */
import t from 'tap';
import { describeDeath, inWords, nameSignals } from '../../src/capture/death.js';
import {
  crashDelayMs,
  laggingAfter,
  newGroup,
  retriesLeft,
  startTriesMax,
  step,
  type GroupCore,
  type GroupEffect,
  type GroupEvent,
} from '../../src/capture/group-state.js';
import { report } from '../support/promotion-report.js';

interface Run {
  readonly core: GroupCore;
  readonly effects: readonly GroupEffect[];
}

/** Feeds events one after the other; the effects are those of the last. */
function feed(core: GroupCore, ...events: readonly GroupEvent[]): Run {
  let effects: readonly GroupEffect[] = [];
  for (const event of events) {
    const result = step(core, event);
    core = result.group;
    effects = result.effects;
  }
  return { core, effects };
}

const types = (run: Run): string[] => run.effects.map((effect) => effect.type);
const started: GroupEvent = { type: 'started', epoch: 1 };
const killed: GroupEvent = { type: 'died', cause: 'sigkill', reason: 'killed by SIGKILL' };
const crashed: GroupEvent = { type: 'died', cause: 'crash', reason: 'crashed by SIGSEGV' };
const promotedAndDrained: readonly GroupEvent[] = [
  { type: 'promoted', report },
  { type: 'drained', us: 1, pages: 0 },
];
const fresh = (): GroupCore => newGroup(1000, 1, 3);

t.test('a group is protected by its first epoch and kept so by the next', (t) => {
  const copying = feed(fresh(), { type: 'progress', bytes: 5, bytesTotal: 10 });
  t.same(copying.core.phase, { kind: 'protecting', bytes: 5, bytesTotal: 10 });
  const run = feed(copying.core, started);
  t.same(run.core.phase, { kind: 'protected' });
  t.same(types(run), ['persist', 'note']);
  const next = feed(run.core, { type: 'committed', epoch: 2 });
  t.match(next.core, { epoch: 2, committedTotal: 2 });
  t.same(next.effects, []);
  t.end();
});

t.test('a first start that fails leaves nothing behind', (t) => {
  const run = feed(fresh(), { type: 'startFailed', reason: 'gone' });
  t.equal(run.core.phase.kind, 'failed');
  t.same(types(run), ['stop', 'persist', 'note']);
  t.end();
});

t.test('abandoned epochs in a row show as lagging, one committed epoch ends it', (t) => {
  const abandoned: GroupEvent = { type: 'abandoned', reason: 'a thread is in D state' };
  const almost = feed(fresh(), started, ...Array<GroupEvent>(laggingAfter - 1).fill(abandoned));
  t.equal(almost.core.phase.kind, 'protected');
  const lagging = feed(almost.core, abandoned);
  t.same(lagging.core.phase, { kind: 'lagging', reason: 'a thread is in D state' });
  t.same(types(lagging), ['note']);
  t.same(feed(lagging.core, abandoned).effects, [], 'said once');
  const back = feed(lagging.core, { type: 'committed', epoch: 5 });
  t.equal(back.core.phase.kind, 'protected');
  t.match(back.core, { abandonedRun: 0, abandonedTotal: laggingAfter });
  t.same(types(back), ['note']);
  t.end();
});

t.test('a killed primary is promoted, and what runs is protected again', (t) => {
  const dying = feed(fresh(), started, killed);
  t.equal(dying.core.phase.kind, 'promoting');
  const lazy = feed(dying.core, { type: 'promoted', report: { ...report, lazyPages: 7 } });
  t.same(lazy.core.phase, { kind: 'promoted', lazyPages: 7 });
  t.same(types(lazy), ['persist', 'announce', 'note']);
  t.match(lazy.core, { hostPid: 2000, generation: 1, epoch: 9, crashes: 0 });
  const drained = feed(lazy.core, { type: 'drained', us: 10, pages: 7 });
  t.equal(drained.core.phase.kind, 'protecting');
  t.equal(drained.core.generation, 2, 'each replica has a generation of its own');
  t.same(types(drained), ['note', 'persist', 'stop', 'start']);
  const again = feed(drained.core, { type: 'started', epoch: 1 });
  t.equal(again.core.phase.kind, 'protected');
  t.end();
});

t.test('crashes are counted, and each next one waits longer', (t) => {
  let core = feed(fresh(), started).core;
  for (let crash = 1; crash <= 3; crash++) {
    core = feed(core, crashed, ...promotedAndDrained, started).core;
    t.equal(core.crashes, crash);
    t.equal(retriesLeft(core), 3 - crash);
  }
  t.equal(retriesLeft({ ...core, crashes: 9 }), 0);
  const kill = feed(core, killed, { type: 'promoted', report });
  t.equal(kill.core.crashes, 3, 'a kill is no crash');
  t.same([0, 1, 2, 3, 10].map(crashDelayMs), [0, 1000, 2000, 4000, 30_000]);
  t.end();
});

t.test('a promoted process that cannot be protected again is tried again, not for ever', (t) => {
  let run = feed(fresh(), started, killed, ...promotedAndDrained);
  const failed: GroupEvent = { type: 'startFailed', reason: 'busy' };
  const delays: number[] = [];
  while (run.core.phase.kind === 'protecting') {
    run = feed(run.core, failed);
    for (const effect of run.effects) if (effect.type === 'start') delays.push(effect.delayMs);
  }
  t.same(delays, [1000, 2000, 4000, 8000]);
  t.equal(delays.length, startTriesMax - 1);
  t.same(run.core.phase, { kind: 'unprotected', reason: 'busy' });
  t.end();
});

t.test('a group that a restarted daemon took up is tried again too', (t) => {
  const run = feed({ ...fresh(), resumed: true }, { type: 'startFailed', reason: 'busy' });
  t.equal(run.core.phase.kind, 'protecting');
  t.equal(run.core.generation, 2);
  const why = 'try 1 of 5 failed: busy';
  t.same(run.core.phase, { kind: 'protecting', bytes: 0, bytesTotal: 0, reason: why });
  const copying = feed(run.core, { type: 'progress', bytes: 5, bytesTotal: 9 });
  t.same(copying.core.phase, { kind: 'protecting', bytes: 5, bytesTotal: 9, reason: why });
  t.equal('reason' in feed(copying.core, started).core.phase, false);
  t.end();
});

t.test('promotion on request works from protected only, and may fail back to it', (t) => {
  t.same(feed(fresh(), { type: 'promoteAsked' }).effects, []);
  const asked = feed(fresh(), started, { type: 'promoteAsked' });
  t.same(types(asked), ['promote']);
  const back = feed(asked.core, { type: 'promoteFailed', reason: 'keeper gone' });
  t.equal(back.core.phase.kind, 'protected');
  t.same(types(back), ['note']);
  t.end();
});

t.test('the end, a lost keeper, detach and unprotect stop the native side, once', (t) => {
  const ends: [GroupEvent, string][] = [
    [{ type: 'ended', reason: 'ended by SIGTERM' }, 'ended'],
    [{ type: 'lost', reason: 'the keeper was killed' }, 'unprotected'],
    [{ type: 'detachAsked' }, 'detached'],
    [{ type: 'unprotectAsked' }, 'removed'],
  ];
  for (const [event, kind] of ends) {
    const run = feed(fresh(), started, event);
    t.equal(run.core.phase.kind, kind);
    t.same(types(run), ['stop', 'persist', 'note']);
    for (const late of [started, killed, { type: 'promoted', report } as const]) {
      t.same(feed(run.core, late).core, run.core, `${late.type} comes too late after ${kind}`);
    }
  }
  const removed = feed(
    fresh(),
    started,
    { type: 'ended', reason: 'x' },
    { type: 'unprotectAsked' },
  );
  t.equal(removed.core.phase.kind, 'removed');
  t.end();
});

t.test('a death is told in words', (t) => {
  t.equal(describeDeath({ cause: 'sigkill' }), 'killed by SIGKILL');
  t.equal(describeDeath({ cause: 'crash', signal: 11 }), 'crashed by SIGSEGV');
  t.equal(describeDeath({ cause: 'signal', signal: 15 }), 'ended by SIGTERM');
  t.equal(describeDeath({ cause: 'signal', signal: 63 }), 'ended by signal 63');
  t.equal(describeDeath({ cause: 'exit', status: 3 }), 'ended by itself with status 3');
  t.equal(nameSignals('ended by signal 15, then signal 99'), 'ended by SIGTERM, then signal 99');
  const stale = 'a file has changed since the epoch /a: Stale file handle';
  t.match(inWords(stale), /^a file has changed since the epoch \/a \(.*--files keep/);
  t.end();
});

t.test('a process that ends while nobody guards it ends its group', (t) => {
  const gone: GroupEvent = { type: 'ended', reason: 'gone' };
  const detached = feed(fresh(), started, { type: 'detachAsked' }, gone);
  t.same(detached.core.phase, { kind: 'ended', reason: 'gone' });
  const lost = feed(fresh(), started, { type: 'lost', reason: 'keeper died' }, gone);
  t.equal(lost.core.phase.kind, 'ended');
  t.same(types(feed(fresh(), started, { type: 'ended', reason: 'x' }, gone)), []);
  t.end();
});

t.test('a promotion says what was lost, a drain of nothing says nothing', (t) => {
  const inexact = { ...report, exact: false, lostMs: 120, whyNotExact: 'it was gone' };
  const run = feed(fresh(), started, crashed, { type: 'promoted', report: inexact });
  const said = run.effects.find((effect) => effect.type === 'note');
  t.match(said, { why: /from epoch 9, 120 ms lost \(it was gone\)/ });
  const drained = step(run.core, { type: 'drained', us: 1, pages: 0 }).effects;
  t.notOk(drained.some((effect) => effect.type === 'note'));
  t.end();
});
