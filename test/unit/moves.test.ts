/** Moves and drains, by what they ask of the node's groups. */
import t from 'tap';
import type { Caller } from '../../src/api/server.js';
import type { GroupStatus, ProtectReport, ProtectRequest } from '../../src/api/schema.js';
import { ReplicationError } from '../../src/base/errors.js';
import { Moves, type MovedGroups } from '../../src/daemon/moves.js';

const root: Caller = { pid: 1, uid: 0, gid: 0 };

interface One {
  readonly name: string;
  to: string | null;
  state: string;
  running: boolean;
  readonly primaryBytes: number;
}

/** Groups that note what is asked of them; protection on a node in `broken` fails. */
class Scripted implements MovedGroups {
  readonly asked: string[] = [];
  readonly #all: One[];
  readonly #broken: readonly string[];

  constructor(all: One[], broken: readonly string[] = []) {
    this.#all = all;
    this.#broken = broken;
  }

  get groups() {
    return this.#all.map(({ name }) => ({ spec: { name } }));
  }
  runsHere = (name: string) => this.#of(name).running;
  group = (_caller: Caller, name: string) => Promise.resolve(this.#show(name));
  replicasOf = (_caller: Caller, name: string) => ({
    want: async (to: string): Promise<void> => {
      if (this.#of(name).to === to) return;
      this.#refuseBroken(to);
      await this.#note(`replica on ${to} for`, name, {});
    },
    drill: async (node: string) => {
      await this.#note(`drill on ${node} of`, name, {});
      const problem = this.#broken.includes(node) ? 'thread 7 got SIGSEGV' : '';
      return { node, epoch: 3, problem, promoteUs: 100, comparedPages: 9, threads: 2, calls: 2 };
    },
  });
  promote = (_caller: Caller, name: string, { to }: { readonly to: string | undefined }) =>
    this.#note(`promote to ${to}:`, name, { state: 'ended', running: false });
  protect = (_caller: Caller, { name = '', to = '' }: ProtectRequest): Promise<ProtectReport> => {
    this.asked.push(`protect to ${to}: ${name}`);
    this.#refuseBroken(to);
    Object.assign(this.#of(name), { to, state: 'protected' });
    const report: Partial<ProtectReport> = { group: this.#show(name) };
    return Promise.resolve(report as ProtectReport);
  };

  #refuseBroken(to: string): void {
    if (!this.#broken.includes(to)) return;
    const message = `node ${to} keeps no replica: it has no such file`;
    throw new ReplicationError('ERR_REFUSED', message, { advice: 'copy it' });
  }

  #of(name: string): One {
    const one = this.#all.find((each) => each.name === name);
    if (one === undefined) throw new ReplicationError('ERR_NO_GROUP', `there is no group ${name}`);
    return one;
  }

  #show(name: string): GroupStatus {
    const { primaryBytes, ...one } = this.#of(name);
    const replicas = one.to === null ? [] : [{ node: one.to, state: 'in sync', keeperSocket: '' }];
    return { ...one, replicas, hostPid: 7, memory: { primaryBytes } } as unknown as GroupStatus;
  }

  #note(what: string, name: string, change: Partial<One>): Promise<GroupStatus> {
    this.asked.push(`${what} ${name}`);
    Object.assign(this.#of(name), change);
    return Promise.resolve(this.#show(name));
  }
}

const one = (name: string, to: string | null, primaryBytes = 1): One => ({
  ...{ name, to, primaryBytes, state: 'protected', running: true },
});

function scene(groups: Scripted, targets: Readonly<Record<string, number>> = { b: 10, c: 20 }) {
  const check = (node: string): void => {
    if (!(node in targets)) throw new ReplicationError('ERR_NO_NODE', `there is no node ${node}`);
  };
  const list = Object.entries(targets);
  return new Moves({
    ...{ groups, self: () => 'a', check },
    targets: () => list.map(([name, bytes]) => ({ name, memoryForReplicasBytes: bytes })),
  });
}

t.test('a move to where the replica is, is a promotion there', async (t) => {
  const groups = new Scripted([one('db', 'b')]);
  await scene(groups).move(root, 'db', 'b');
  t.same(groups.asked, ['promote to b: db']);
});

t.test('elsewhere a replica is built there first', async (t) => {
  const groups = new Scripted([one('db', null)]);
  await scene(groups).move(root, 'db', 'c');
  t.same(groups.asked, ['replica on c for db', 'promote to c: db']);
});

t.test('what cannot be built there stays as it is', async (t) => {
  const groups = new Scripted([one('db', 'b')], ['c']);
  await t.rejects(scene(groups).move(root, 'db', 'c'), {
    ...{ code: 'ERR_REFUSED', advice: 'copy it' },
    message: 'node c keeps no replica: it has no such file',
  });
  t.same(groups.asked, []);
});

t.test('what nobody protects is protected there first', async (t) => {
  const groups = new Scripted([{ ...one('db', null), state: 'detached' }]);
  await scene(groups).move(root, 'db', 'c');
  t.same(groups.asked, ['protect to c: db', 'promote to c: db']);
});

t.test('a node that is not there, and a group that does not run', async (t) => {
  const groups = new Scripted([{ ...one('db', 'b'), running: false }]);
  await t.rejects(scene(groups).move(root, 'db', 'x'), { code: 'ERR_NO_NODE' });
  await t.rejects(scene(groups).move(root, 'db', 'b'), { code: 'ERR_ENDED' });
  await t.rejects(scene(groups).move(root, 'none', 'b'), { code: 'ERR_NO_GROUP' });
  t.same(groups.asked, []);
});

t.test('a drill is where it would run, else where it was asked for', async (t) => {
  const groups = new Scripted([one('db', 'b'), one('web', null)], ['c']);
  const moves = scene(groups);
  t.match(await moves.drill(root, 'db', undefined), { node: 'b', epoch: 3, problem: null });
  t.match(await moves.drill(root, 'db', 'c'), { node: 'c', problem: /SIGSEGV/ });
  await t.rejects(moves.drill(root, 'db', 'x'), { code: 'ERR_NO_NODE' });
  t.match(await moves.drill(root, 'web', undefined), { node: 'a' });
  t.same(groups.asked, ['drill on b of db', 'drill on c of db', 'drill on self of web']);
  const large = new Scripted([one('big', 'b', 50)]);
  await t.rejects(scene(large).drill(root, 'big', 'b'), { code: 'ERR_NO_NODE' });
});

t.test('a drain moves each to its replica, else to where there is room', async (t) => {
  const over = { ...one('over', 'b'), running: false };
  const groups = new Scripted([one('db', 'b'), one('web', null), over, one('big', null, 50)]);
  t.same(await scene(groups).drain(root, 'a'), {
    node: 'a',
    moved: [
      { name: 'db', to: 'b' },
      { name: 'web', to: 'c' },
    ],
    left: [{ name: 'big', why: 'no other node is up and has memory for it' }],
  });
});

t.test('a drain is for root, and typed on the node itself', async (t) => {
  const moves = scene(new Scripted([]));
  await t.rejects(moves.drain({ ...root, uid: 1000 }, 'a'), { code: 'ERR_DENIED' });
  await t.rejects(moves.drain(root, 'b'), {
    code: 'ERR_BAD_REQUEST',
    advice: 'on b: replpage drain b',
  });
  await t.rejects(moves.drain(root, 'x'), { code: 'ERR_NO_NODE' });
});
