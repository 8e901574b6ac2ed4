/** What this node keeps for others, without a native side. */
import t from 'tap';
import { newGroup, startTriesMax, step, type GroupCore } from '../../src/capture/group-state.js';
import type { ExpectedReplica, NativeStandby } from '../../src/native/standby.js';
import type { Unmet } from '../../src/native/requirements.js';
import { describeUnmet } from '../../src/replica/describe-unmet.js';
import { Standbys, type PromotedStandby } from '../../src/replica/standbys.js';

t.test('what a node lacks is told in one line, and not without end', (t) => {
  const lack = (what: string): Unmet => ({
    ...{ kind: 'fileMissing', what, where: 'mapped', why: 'it is not here', remedy: 'install it' },
  });
  t.equal(describeUnmet([lack('/a')]), '/a (mapped): it is not here; install it');
  t.match(describeUnmet(['/a', '/b', '/c', '/d', '/e'].map(lack)), /\/c .*; and 2 more$/);
  t.end();
});

/** Does nothing, and remembers it. */
class QuietNative implements NativeStandby {
  readonly expected: ExpectedReplica[] = [];
  readonly dropped: string[] = [];
  promotes = true;
  port = (): number => 1;
  renew = (): void => undefined;
  stop = (): void => undefined;
  expect(replica: ExpectedReplica): void {
    this.expected.push(replica);
  }
  promote = (): boolean => this.promotes;
  drop(token: string): void {
    this.dropped.push(token);
  }
}

function kept() {
  const native = new QuietNative();
  const promoted: PromotedStandby<string>[] = [];
  const notes: string[] = [];
  let nowMs = 0;
  const standbys = new Standbys<string>({
    clock: {
      nowMs: () => ++nowMs,
      wall: () => new Date(0),
      sleep: () => Promise.resolve(),
    },
    note: (group, what, why) => notes.push(`${group} ${what} ${why}`),
    promoted: (one) => promoted.push(one),
    opened: () => undefined,
    lost: () => undefined,
  });
  standbys.use(native);
  const expect = (generation: number): string =>
    standbys.expect(native, { id: 'a1', name: 'a' }, 'spec', {
      ...{
        name: 'db',
        generation,
        keeperPath: '',
        runtimeDir: '',
        spillDir: '',
        stdio: null,
        vip: null,
      },
      ...{ uid: 0, gid: 0, groups: [], files: 'refuse', stagingBytesMax: 1, spillBytesMax: 0 },
      peerFiles: [],
      drill: false,
    });
  return { native, standbys, promoted, notes, expect };
}

t.test('a newer replica takes the place of the older with its first epoch', async (t) => {
  const { native, standbys, promoted, expect } = kept();
  const one = expect(1);
  await t.rejects(standbys.promote('db', false), { code: 'ERR_NO_REPLICA' });
  standbys.heard({ type: 'opened', made: [], token: one });
  standbys.heard({ type: 'committed', token: one, epoch: 1, residentBytes: 5 });
  standbys.heard({ type: 'cutOff', token: one, why: 'silence' });
  t.match(standbys.of('db'), { state: 'cut off', epoch: 1, reason: 'silence' });
  const two = expect(2);
  standbys.heard({ type: 'opened', made: [], token: two });
  t.equal(standbys.of('db')?.token, one, 'the old one is what can be promoted');
  t.same(native.dropped, []);
  standbys.heard({ type: 'committed', token: two, epoch: 7, residentBytes: 5 });
  t.same(native.dropped, [one]);
  standbys.heard({ type: 'lost', token: one, why: 'it was dropped' });
  t.equal(standbys.all.length, 1);
  const asked = standbys.promote('db', false);
  standbys.heard({
    ...{ type: 'promoted', token: two, epoch: 7, pid: 3, hostPid: 4, promoteUs: 1 },
    ...{ ordered: false, keeperSocket: '/s' },
  });
  await asked;
  t.match(promoted, [{ hostPid: 4, standby: { generation: 2 } }]);
  t.equal(standbys.of('db'), undefined);
});

t.test('a promotion that fails is told, and one that nobody keeps', async (t) => {
  const { native, standbys, expect } = kept();
  const token = expect(1);
  standbys.heard({ type: 'committed', token, epoch: 1, residentBytes: 5 });
  const asked = standbys.promote('db', false);
  standbys.heard({ type: 'lost', token, why: 'a file has changed' });
  await t.rejects(asked, { code: 'ERR_STATE', message: /a file has changed/ });
  const next = expect(2);
  standbys.heard({ type: 'committed', token: next, epoch: 1, residentBytes: 5 });
  native.promotes = false;
  await t.rejects(standbys.promote('db', false), { code: 'ERR_STATE' });
  t.equal(standbys.drop('db', 'other', 9), 0, 'of another node');
  t.equal(standbys.drop('db', 'a1', 1), 0, 'of an older generation');
  t.equal(standbys.drop('db', 'a1', 2), 1);
});

t.test('a group whose replica was on a node that is lost waits for it', (t) => {
  const started = step(newGroup(1, 1, 3), { type: 'started', epoch: 1 }).group;
  const lost = step(started, { type: 'lost', reason: 'gone', again: true });
  t.match(lost.group, {
    phase: { kind: 'protecting', reason: 'unprotected: gone' },
    generation: 2,
  });
  t.match(lost.effects, [{ type: 'persist' }, { type: 'stop' }, { type: 'start' }, {}]);
  let group: GroupCore = lost.group;
  for (let i = 0; i < 3 * startTriesMax; i++) {
    const failed = step(group, { type: 'startFailed', reason: 'away', patient: true });
    t.match(failed.group.phase, { kind: 'protecting', reason: 'unprotected: away' });
    const start = failed.effects.find(({ type }) => type === 'start');
    t.ok(start !== undefined && 'delayMs' in start && start.delayMs <= 5000);
    group = failed.group;
  }
  t.match(step(group, { type: 'started', epoch: 9 }).group.phase, { kind: 'protected' });
  const first = step(newGroup(1, 1, 3), { type: 'startFailed', reason: 'away', patient: true });
  t.equal(first.group.phase.kind, 'failed', 'the user is told at once');
  t.end();
});
