/** Which options a group has: asked for now, kept from before, default. */
import t from 'tap';
import { protectDefaults } from '../../src/api/schema.js';
import { newSpec } from '../../src/daemon/new-spec.js';

const owner = { uid: 1000, gid: 1000, groups: [7] };
const asked = { pid: 1, retries: 9, pidfile: '/run/a.pid', onPromote: 'tell' } as const;

t.test('what is not asked for has its default', (t) => {
  const { spec, takenOver } = newSpec(
    'a',
    { pid: 1, retries: 0 },
    { caller: owner, logDir: '/log' },
  );
  const { storeId, ...rest } = spec;
  t.match(storeId, /^[0-9a-f]{16}$/);
  t.same(rest, {
    ...protectDefaults,
    name: 'a',
    retries: 0,
    stdio: '/log/a.log',
    pidfile: undefined,
    onPromote: undefined,
    onFence: undefined,
    vip: undefined,
    store: undefined,
    owner,
  });
  t.same(takenOver, []);
  t.end();
});

t.test('a group that is protected again keeps what it had, and says so', (t) => {
  const before = newSpec('a', asked, { caller: owner, logDir: '/log' }).spec;
  const again = newSpec(
    'b',
    { pid: 1, pidfile: '/run/b.pid' },
    { caller: owner, before: before, logDir: '/log' },
  );
  t.match(again.spec, { name: 'b', retries: 9, pidfile: '/run/b.pid', onPromote: 'tell' });
  t.equal(again.spec.stdio, '/log/b.log', 'a default name follows the group');
  t.same(again.takenOver, ['retries', 'onPromote']);
  const back = newSpec(
    'a',
    { pid: 1, retries: protectDefaults.retries },
    { caller: owner, before: before, logDir: '/log' },
  );
  t.equal(back.spec.retries, protectDefaults.retries, 'a default that is asked for counts');
  const silent = newSpec('a', { ...asked, stdio: null }, { caller: owner, logDir: '/log' }).spec;
  t.equal(
    newSpec('a', { pid: 1 }, { caller: owner, before: silent, logDir: '/log' }).spec.stdio,
    null,
  );
  t.end();
});

t.test("files and hooks keep their owner, or are not another user's", (t) => {
  const before = newSpec('a', asked, { caller: owner, logDir: '/log' }).spec;
  const root = { uid: 0, gid: 0, groups: [] };
  const kept = newSpec('a', { pid: 1 }, { caller: root, before: before, logDir: '/log' });
  t.match(kept.spec, { owner, onPromote: 'tell', pidfile: '/run/a.pid' });
  const own = newSpec(
    'a',
    { pid: 1, pidfile: '/run/root.pid' },
    { caller: root, before: before, logDir: '/log' },
  );
  t.match(own.spec, { owner: root, pidfile: '/run/root.pid', retries: 9 });
  t.equal(own.spec.onPromote, undefined, 'no command of theirs runs as root');
  t.match(own.warnings, [/onPromote .* user 1000, and is not kept/]);
  t.same(own.takenOver, ['retries']);
  t.end();
});

t.test('who asks for a page store that is not used is told', (t) => {
  const warned = (request: object) =>
    newSpec('a', { pid: 1, ...request }, { caller: owner, logDir: '/log' }).warnings;
  t.match(warned({ store: '/mnt', coldAfterMs: 5000 }), [
    /^--store and --cold-after without effect/,
  ]);
  t.same(warned({ store: '/mnt', ram: 'hot' }), []);
  t.same(warned({}), []);
  t.end();
});
