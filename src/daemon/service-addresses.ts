/**
 * The service addresses of this node's groups (`--vip`): each is on its interface as long as its
 * group is looked after here, comes back when somebody takes it away, and goes with the group. What
 * was there before the group came stays as it was found. Level-triggered: `settle` compares what
 * should be with what was done, so that no path out of a group can forget one.
 */
import { readlink } from 'node:fs/promises';
import { describe, ReplicationError } from '../base/errors.js';
import type { Log } from '../base/log.js';
import { hasPeers, type GroupSpec } from '../capture/group-spec.js';
import { isFirstStart, type GroupCore } from '../capture/group-state.js';
import type { NativeAddon } from '../native/binding.js';
import type { NativeServiceAddress } from '../native/service-address.js';

/** Of a group's address, in the state file. */
export interface AddressRecord {
  readonly address: string;
  /** It was there, marked as replpage's, when the group came: not the group's to take away. */
  readonly wasThere: boolean;
}

export interface AddressStatus extends AddressRecord {
  /** Why it is not there; null: it is. */
  readonly trouble: string | null;
}

/** What is to be known of a group. */
export interface AddressedGroup {
  readonly spec: Pick<GroupSpec, 'name' | 'vip' | 'owner' | 'to'>;
  readonly core: GroupCore;
}

export interface ServiceAddressesOptions {
  readonly native: Pick<NativeAddon, 'ServiceAddress'>;
  readonly log: Log;
  groups(): readonly AddressedGroup[];
  note(group: string, what: string, why: string): void;
  /** The records have changed. */
  record(): void;
  /** Resolves when the records are in the state file, or cannot be. */
  recorded(): Promise<void>;
}

interface Held {
  readonly native: NativeServiceAddress;
  readonly wasThere: boolean;
  trouble: string | undefined;
}

/** Of an address that the keeper has taken, and announced once. */
const arrivedNow = 'not announced yet';

/** Phases of a group that is looked after no more. */
const over: readonly string[] = ['ended', 'failed', 'removed'];

export class ServiceAddresses {
  readonly #options: ServiceAddressesOptions;
  /** Per group. */
  readonly #held = new Map<string, Held>();
  #settling: Promise<void> = Promise.resolve();
  #waits = false;

  constructor(options: ServiceAddressesOptions) {
    this.#options = options;
  }

  /** What a daemon before this one had taken for the group. */
  takeUp(name: string, { address, wasThere }: AddressRecord): void {
    const native = new this.#options.native.ServiceAddress(address);
    this.#held.set(name, { native, wasThere, trouble: undefined });
  }

  /** The group came from another node, and its keeper may have taken the address already. */
  arrived({ name, vip }: Pick<GroupSpec, 'name' | 'vip'>): void {
    if (vip === undefined) return;
    const native = new this.#options.native.ServiceAddress(vip);
    this.#held.set(name, { native, wasThere: false, trouble: arrivedNow });
  }

  recordOf(name: string): AddressRecord | undefined {
    const held = this.#held.get(name);
    return held && { address: held.native.text, wasThere: held.wasThere };
  }

  statusOf(name: string): AddressStatus | undefined {
    const held = this.#held.get(name);
    const record = this.recordOf(name);
    return held && record && { ...record, trouble: held.trouble ?? null };
  }

  /** The address as it is always written. Throws ERR_BAD_REQUEST. */
  usual(vip: string | undefined): string | undefined {
    return vip === undefined ? undefined : this.#parse(vip).text;
  }

  /**
   * Whether the group may have its address, before anything is touched. Throws ERR_BAD_REQUEST,
   * ERR_DENIED or ERR_REFUSED.
   */
  async check(group: AddressedGroup): Promise<void> {
    const { vip, owner } = group.spec;
    if (vip === undefined) return;
    const option = `--vip ${vip}`;
    const native = this.#parse(vip);
    if (owner.uid !== 0) {
      throw new ReplicationError('ERR_DENIED', `${option}: user ${owner.uid} may not`, {
        advice: "only root may change the machine's addresses",
      });
    }
    await checkNamespace(group.core.hostPid, option);
    const other = this.#holderOf(vip, group);
    if (other !== undefined) {
      throw new ReplicationError('ERR_BAD_REQUEST', `${option}: it is that of group ${other}`);
    }
    const found = await native.find().catch((error: unknown) => {
      throw new ReplicationError('ERR_BAD_REQUEST', `${option}: ${describe(error)}`);
    });
    if (found === undefined || found.ours) return;
    throw new ReplicationError('ERR_BAD_REQUEST', `${option}: ${found.where} is not replpage's`, {
      advice:
        'replpage never takes away what others configured: take it out of the network ' +
        `configuration and off its interface (ip address del ${found.where.replace(' on ', ' dev ')}), ` +
        'then protect at once; established connections live through that',
    });
  }

  #parse(vip: string): NativeServiceAddress {
    try {
      return new this.#options.native.ServiceAddress(vip);
    } catch (error) {
      throw new ReplicationError('ERR_BAD_REQUEST', `--vip ${describe(error)}`);
    }
  }

  /** Another group, over another process, that has the address. */
  #holderOf(vip: string, group: AddressedGroup): string | undefined {
    const { hostPid } = group.core;
    const holder = this.#options.groups().find(({ spec, core }) => {
      if (core.hostPid === hostPid || over.includes(core.phase.kind)) return false;
      return spec.vip !== undefined && hostOf(spec.vip) === hostOf(vip);
    });
    return holder?.spec.name;
  }

  /** Once the group is protected: puts its address there. Gives warnings. Throws ERR_STATE. */
  async taken(group: AddressedGroup & { unprotect(): Promise<void> }): Promise<readonly string[]> {
    const { spec } = group;
    if (spec.vip === undefined) return [];
    await this.settle();
    const held = this.#held.get(spec.name);
    if (held?.trouble !== undefined) {
      await group.unprotect();
      throw new ReplicationError('ERR_STATE', `--vip ${spec.vip}: ${held.trouble}`, {
        advice: 'the process runs on, unprotected',
      });
    }
    if (held?.wasThere !== true) return [];
    return [`${spec.vip} was there already, put there by replpage: it stays when the group goes`];
  }

  /** A group has changed, or some time has passed. Resolves when all is as it should be by now. */
  settle(): Promise<void> {
    const any = this.#held.size > 0 || this.#options.groups().some(({ spec }) => spec.vip);
    if (this.#waits || !any) return this.#settling;
    this.#waits = true;
    this.#settling = this.#settling.then(async () => {
      // One group may be taking the place of another just now.
      await new Promise((resolve) => setImmediate(resolve));
      this.#waits = false;
      await this.#settleNow().catch((error: unknown) => {
        this.#options.log.error({ reason: describe(error) }, 'addresses are not as they should be');
      });
    });
    return this.#settling;
  }

  async #settleNow(): Promise<void> {
    const groups = this.#options.groups();
    const kept = new Set<string>();
    for (const { spec, core } of groups) {
      if (spec.vip === undefined || over.includes(core.phase.kind)) continue;
      const held = this.#held.get(spec.name);
      if (held !== undefined && held.native.text !== spec.vip && !isFirstStart(core)) continue;
      kept.add(spec.name);
    }
    for (const { spec, core } of groups) {
      if (spec.vip === undefined || isFirstStart(core) || over.includes(core.phase.kind)) continue;
      if (this.#isLeaving(spec.name)) continue;
      if (!kept.has(spec.name)) await this.#giveUp(spec.name);
      kept.add(spec.name);
      await this.#keep(spec.name, spec.vip, kept);
    }
    for (const name of this.#held.keys()) if (!kept.has(name)) await this.#giveUp(name);
  }

  /** To the node of its replica, with its address: who sees it gone first must not mend it. */
  #isLeaving(name: string): boolean {
    const group = this.#options.groups().find(({ spec }) => spec.name === name);
    return group?.core.phase.kind === 'promoting' && hasPeers(group.spec);
  }

  async #keep(name: string, vip: string, kept: ReadonlySet<string>): Promise<void> {
    const held = this.#held.get(name) ?? (await this.#inherit(name, vip, kept));
    if (held === undefined) return;
    try {
      const found = held.trouble === undefined ? await held.native.find() : undefined;
      if (found?.ours === true || this.#isLeaving(name)) return;
      const isNew = (await held.native.take()) || held.trouble === arrivedNow;
      held.trouble = undefined;
      // It began to leave meanwhile, or had gone and nobody had been told.
      if (this.#isLeaving(name)) return void (await held.native.giveUp());
      if (isNew) this.#options.note(name, 'address taken', vip);
    } catch (error) {
      const trouble = describe(error);
      if (held.trouble !== trouble) this.#options.note(name, 'address not there', trouble);
      held.trouble = trouble;
    }
  }

  /** From a group that is no more, or new: recorded before it is taken, so that it is given up. */
  async #inherit(name: string, vip: string, kept: ReadonlySet<string>): Promise<Held | undefined> {
    for (const [other, held] of this.#held) {
      if (held.native.text !== vip) continue;
      if (kept.has(other)) return undefined;
      this.#held.delete(other);
      this.#held.set(name, held);
      return held;
    }
    const native = new this.#options.native.ServiceAddress(vip);
    const found = await native.find().catch(() => undefined);
    // To be announced, whoever put it there.
    const held: Held = { native, wasThere: found?.ours ?? false, trouble: 'not taken yet' };
    this.#held.set(name, held);
    this.#options.record();
    await this.#options.recorded();
    return held;
  }

  async #giveUp(name: string): Promise<void> {
    const held = this.#held.get(name);
    if (held === undefined) return;
    const { text } = held.native;
    try {
      const others = [...this.#held].filter(([other]) => other !== name);
      const passedOn = others.some(([, { native }]) => native.text === text);
      if (!held.wasThere && !passedOn && (await held.native.giveUp())) {
        this.#options.note(name, 'address given up', text);
      }
      this.#held.delete(name);
      this.#options.record();
    } catch (error) {
      const trouble = describe(error);
      // Tried again when something else changes, or by and by.
      if (held.trouble !== trouble) this.#options.log.warn({ group: name, trouble }, 'address');
      held.trouble = trouble;
    }
  }
}

const hostOf = (text: string): string => text.slice(0, text.indexOf('/'));

async function checkNamespace(pid: number, option: string): Promise<void> {
  const [theirs, ours] = await Promise.all([
    readlink(`/proc/${pid}/ns/net`).catch(() => undefined),
    readlink('/proc/self/ns/net'),
  ]);
  if (theirs === undefined || theirs === ours) return;
  throw new ReplicationError('ERR_REFUSED', `${option}: another network namespace`, {
    refusals: [
      {
        pid,
        object: `process ${pid}`,
        kind: 'network namespace',
        why: 'it has network interfaces of its own, and the daemon sets addresses on its own only',
      },
    ],
  });
}
