/** Which group has which address, and when it is taken and given up. */
import t, { type Test } from 'tap';
import { newGroup, type GroupCore, type Phase } from '../../src/capture/group-state.js';
import { ServiceAddresses, type AddressedGroup } from '../../src/daemon/service-addresses.js';
import type { FoundAddress, NativeServiceAddress } from '../../src/native/service-address.js';

const silent = () => undefined;
const quiet = { debug: silent, info: silent, warn: silent, error: silent, child: () => quiet };
const root = { uid: 0, gid: 0, groups: [] };
const vip = '10.0.0.9/24@eth0';

/** A machine: addresses, and whose they are. */
class Machine {
  readonly interfaces = new Map<string, 'ours' | 'operator'>();
  readonly done: string[] = [];
  /** What taking fails with. */
  failure: Error | undefined;
  readonly groups: { spec: AddressedGroup['spec']; core: GroupCore }[] = [];
  readonly addresses: ServiceAddresses;

  constructor() {
    const native = { ServiceAddress: addressOn(this) };
    this.addresses = new ServiceAddresses({
      native,
      log: quiet,
      groups: () => this.groups,
      note: (group, what) => void this.done.push(`${group}: ${what}`),
      record: () => void this.done.push('recorded'),
      recorded: () => Promise.resolve(),
    });
  }

  group(name: string, phase: Phase['kind'], address: string | undefined = vip, hostPid = 7): void {
    const at = this.groups.findIndex(({ spec }) => spec.name === name);
    if (at >= 0) this.groups.splice(at, 1);
    const core = { ...newGroup(hostPid, 1, 3), phase: { kind: phase } as Phase };
    this.groups.push({ spec: { name, vip: address, owner: root }, core });
  }

  async settled(): Promise<readonly string[]> {
    await this.addresses.settle();
    return this.done.splice(0);
  }
}

function addressOn(machine: Machine): new (text: string) => NativeServiceAddress {
  return class {
    readonly text: string;

    constructor(text: string) {
      if (!text.includes('/')) throw new Error(`${text}: it is no address`);
      this.text = text;
    }

    find(): Promise<FoundAddress | undefined> {
      const whose = machine.interfaces.get(this.text);
      const found = { ours: whose === 'ours', where: '10.0.0.9/24 on eth0' };
      return Promise.resolve(whose === undefined ? undefined : found);
    }

    take(): Promise<boolean> {
      if (machine.failure) return Promise.reject(machine.failure);
      if (machine.interfaces.has(this.text)) return Promise.resolve(false);
      machine.interfaces.set(this.text, 'ours');
      machine.done.push('taken');
      return Promise.resolve(true);
    }

    giveUp(): Promise<boolean> {
      if (machine.failure) return Promise.reject(machine.failure);
      if (machine.interfaces.get(this.text) !== 'ours') return Promise.resolve(false);
      machine.interfaces.delete(this.text);
      machine.done.push('given up');
      return Promise.resolve(true);
    }

    drop = (): Promise<void> => Promise.resolve();
    lift = (): Promise<void> => Promise.resolve();
  };
}

t.test('an address is there from the first epoch to the end', async (t) => {
  const machine = new Machine();
  machine.group('web', 'protecting');
  t.same(await machine.settled(), [], 'no epoch is committed yet');
  machine.group('web', 'protected');
  const done = await machine.settled();
  t.same(done, ['recorded', 'taken', 'web: address taken'], 'recorded before it is taken');
  const record = { address: vip, wasThere: false };
  t.same(machine.addresses.recordOf('web'), record);
  for (const kind of ['lagging', 'promoting', 'promoted', 'unprotected', 'detached'] as const) {
    machine.group('web', kind);
    t.same(await machine.settled(), [], kind);
  }
  machine.group('web', 'protecting');
  t.same(await machine.settled(), [], 'protected anew after it was detached');
  machine.interfaces.delete(vip);
  machine.group('web', 'protected');
  t.same(await machine.settled(), ['taken', 'web: address taken'], 'somebody took it away');
  machine.group('web', 'ended');
  t.same(await machine.settled(), ['given up', 'web: address given up', 'recorded']);
  t.equal(machine.addresses.recordOf('web'), undefined);
  t.same(await machine.settled(), []);
});

t.test('what was there before stays, and what a former daemon took goes', async (t) => {
  const machine = new Machine();
  machine.interfaces.set(vip, 'ours');
  machine.group('web', 'protected');
  t.same(await machine.settled(), ['recorded'], 'taken, which announces it, and not new');
  t.same(machine.addresses.statusOf('web'), { address: vip, wasThere: true, trouble: null });
  machine.groups.pop();
  t.same(await machine.settled(), ['recorded']);
  t.ok(machine.interfaces.has(vip));

  machine.addresses.takeUp('web', { address: vip, wasThere: false });
  machine.group('web', 'ended');
  t.same(await machine.settled(), ['given up', 'web: address given up', 'recorded']);
});

t.test('an address passes from one group to the next without a gap', async (t) => {
  const machine = new Machine();
  machine.group('old', 'protected');
  await machine.settled();
  machine.groups.pop();
  machine.group('new', 'protected');
  t.same(await machine.settled(), []);
  t.equal(machine.addresses.recordOf('old'), undefined);
  t.match(machine.addresses.recordOf('new'), { address: vip });
  machine.group('new', 'protected', '10.0.0.8/24@eth0');
  t.same(await machine.settled(), [
    ...['given up', 'new: address given up', 'recorded'],
    ...['recorded', 'taken', 'new: address taken'],
  ]);
});

t.test('what fails is told once, shown, and tried again', async (t) => {
  const machine = new Machine();
  machine.failure = new Error('put it there: Operation not permitted');
  machine.group('web', 'protected');
  t.same(await machine.settled(), ['recorded', 'web: address not there']);
  t.same(await machine.settled(), []);
  t.match(machine.addresses.statusOf('web'), { trouble: /not permitted/ });
  let asked = 0;
  const [group] = machine.groups;
  if (group === undefined) throw new Error('no group');
  const unprotect = (): Promise<void> => Promise.resolve(void asked++);
  await t.rejects(machine.addresses.taken({ ...group, unprotect }), {
    code: 'ERR_STATE',
    message: /--vip .*not permitted/,
  });
  t.equal(asked, 1);
  machine.failure = undefined;
  t.same(await machine.settled(), ['taken', 'web: address taken']);
  t.match(machine.addresses.statusOf('web'), { trouble: null });
  machine.failure = new Error('the kernel is busy');
  machine.group('web', 'removed');
  t.same(await machine.settled(), []);
  t.match(machine.addresses.recordOf('web'), { address: vip }, 'not forgotten');
  machine.failure = undefined;
  t.same(await machine.settled(), ['given up', 'web: address given up', 'recorded']);
});

t.test('who may have an address is found out beforehand', async (t) => {
  const machine = new Machine();
  const { addresses } = machine;
  t.equal(addresses.usual(undefined), undefined);
  t.throws(() => addresses.usual('nothing'), { code: 'ERR_BAD_REQUEST', message: /--vip nothing/ });
  const core = newGroup(process.pid, 1, 3);
  const group = { spec: { name: 'web', vip, owner: root }, core };
  await addresses.check(group);
  const check = (t: Test, one: AddressedGroup, code: string, message: RegExp): Promise<unknown> =>
    t.rejects(addresses.check(one), { code, message });
  const theirs = { ...group.spec, owner: { ...root, uid: 1000 } };
  await check(t, { spec: theirs, core }, 'ERR_DENIED', /user 1000 may not/);
  await addresses.check({ spec: { ...theirs, vip: undefined }, core });
  machine.group('other', 'protected', '10.0.0.9/32@eth1', 8);
  await check(t, group, 'ERR_BAD_REQUEST', /that of group other/);
  machine.group('other', 'ended', vip, 8);
  await addresses.check(group);
  machine.interfaces.set(vip, 'operator');
  await t.rejects(addresses.check(group), {
    message: /10\.0\.0\.9\/24 on eth0 is not replpage's/,
    advice: /ip address del 10\.0\.0\.9\/24 dev eth0/,
  });
});
