/**
 * The replicas that this node keeps for other nodes. Of one group there may be two for a while: the
 * newer one takes the place of the older with its first epoch, so that there is always one to
 * promote.
 */
import { randomBytes } from 'node:crypto';
import type { Clock } from '../base/clock.js';
import { deferred, type Deferred } from '../base/deferred.js';
import { ReplicationError } from '../base/errors.js';
import type { ExpectedReplica, NativeStandby, StandbyEvent } from '../native/standby.js';

export type StandbyState =
  | 'expected'
  | 'building'
  /** Follows its primary. */
  | 'standby'
  /** Its primary's node is not heard; it stands by at its last epoch. */
  | 'cut off'
  | 'promoting';

export interface Standby<Spec> {
  readonly token: string;
  readonly name: string;
  readonly generation: number;
  readonly node: { readonly id: string; readonly name: string };
  readonly spec: Spec;
  readonly stdio: string | null;
  state: StandbyState;
  /** 0: none is committed yet. */
  epoch: number;
  residentBytes: number;
  /** When its last epoch was committed. */
  committedMs: number;
  /** Why it is cut off. */
  reason: string | undefined;
}

/** It runs here now. */
export interface PromotedStandby<Spec> {
  readonly standby: Standby<Spec>;
  readonly pid: number;
  readonly hostPid: number;
  readonly epoch: number;
  readonly promoteUs: number;
  readonly ordered: boolean;
  readonly keeperSocket: string;
}

export interface StandbysOptions<Spec> {
  readonly clock: Clock;
  note(group: string, what: string, why: string): void;
  promoted(promoted: PromotedStandby<Spec>): void;
  /** Its keeper has what it needs; `made` for shipped files. */
  opened(standby: Standby<Spec>, made: readonly string[]): void;
  /** It was not promoted, and is no more. */
  lost(): void;
}

/** What was prepared for and never came is forgotten. */
const expectedMs = 60_000;
const standbysMax = 1000;

export class Standbys<Spec> {
  readonly #options: StandbysOptions<Spec>;
  readonly #all = new Map<string, Standby<Spec>>();
  readonly #asked = new Map<string, Deferred<void>>();
  #native: NativeStandby | undefined;

  constructor(options: StandbysOptions<Spec>) {
    this.#options = options;
  }

  use(native: NativeStandby): void {
    this.#native = native;
  }

  get all(): readonly Standby<Spec>[] {
    return [...this.#all.values()];
  }

  /** The newest of that group that has an epoch, else the newest. */
  of(name: string): Standby<Spec> | undefined {
    return this.all
      .filter((standby) => standby.name === name)
      .sort((a, b) => Number(b.epoch > 0) - Number(a.epoch > 0) || b.generation - a.generation)[0];
  }

  has(name: string, generation: number): boolean {
    return this.all.some((one) => one.name === name && one.generation === generation);
  }

  /** Gives the token that it must be brought with. Throws ERR_LIMIT, and ERR_STATE for now. */
  expect(
    native: NativeStandby,
    node: { readonly id: string; readonly name: string },
    spec: Spec,
    replica: Omit<ExpectedReplica, 'token' | 'node'>,
  ): string {
    const nowMs = this.#options.clock.nowMs();
    for (const { token, state, committedMs } of this.all) {
      if (state === 'expected' && nowMs - committedMs > expectedMs) this.#forget(token);
    }
    if (this.#all.size >= standbysMax) {
      throw new ReplicationError('ERR_LIMIT', `${standbysMax} replicas are kept here already`);
    }
    const token = randomBytes(16).toString('hex');
    const { name, generation, stdio } = replica;
    // Of a daemon that has lost its state; their keepers' sockets would have one name.
    const same = this.all.filter((one) => one.name === name && one.generation === generation);
    for (const one of same) this.#forget(one.token);
    if (same.some(({ token: old }) => this.#all.has(old))) {
      const message = `an older replica of ${name} is dropped first: try again`;
      throw new ReplicationError('ERR_STATE', message);
    }
    native.expect({ ...replica, token, node: node.id });
    this.#all.set(token, {
      ...{ token, name, generation, node, spec, stdio, state: 'expected' },
      ...{ epoch: 0, residentBytes: 0, committedMs: nowMs, reason: undefined },
    });
    return token;
  }

  /** Resolves when it runs. Throws ERR_NO_REPLICA, and ERR_STATE with what went wrong. */
  async promote(name: string, keepFiles: boolean): Promise<void> {
    const standby = this.of(name);
    if (standby === undefined || standby.epoch === 0) {
      throw new ReplicationError('ERR_NO_REPLICA', `no replica of ${name} stands by here`);
    }
    const asked = deferred<void>();
    this.#asked.set(standby.token, asked);
    if (this.#native?.promote(standby.token, keepFiles) !== true) {
      this.#asked.delete(standby.token);
      throw new ReplicationError('ERR_STATE', `the replica of ${name} is not there any more`);
    }
    standby.state = 'promoting';
    await asked.promise;
  }

  /** Those of a group up to a generation, of one node. */
  drop(name: string, node: string, generation: number): number {
    const found = this.all.filter(
      (one) => one.name === name && one.node.id === node && one.generation <= generation,
    );
    for (const { token } of found) this.#forget(token);
    return found.length;
  }

  /** Those of a group of lower generations, whosever. */
  dropBelow(name: string, generation: number): void {
    const found = this.all.filter((one) => one.name === name && one.generation < generation);
    for (const { token } of found) this.#forget(token);
  }

  heard(event: StandbyEvent): void {
    const standby = this.#all.get(event.token);
    if (standby === undefined) return;
    switch (event.type) {
      case 'opened':
        standby.state = 'building';
        return this.#options.opened(standby, event.made);
      case 'committed':
        return this.#committed(standby, event);
      case 'cutOff':
        if (standby.reason === 'dropped') return;
        standby.state = 'cut off';
        standby.reason = event.why;
        return this.#options.note(standby.name, 'cut off', event.why);
      case 'promoted':
        this.#all.delete(event.token);
        for (const { token } of this.#others(standby)) this.#forget(token);
        this.#options.promoted({ standby, ...event });
        return this.#settle(event.token);
      case 'drained':
        return;
      case 'lost': {
        this.#all.delete(event.token);
        const why = `the replica of ${standby.name} was lost: ${event.why}`;
        // Of one that was replaced nobody needs to hear.
        if (standby.epoch > 0 && standby.reason !== 'dropped')
          this.#options.note(standby.name, 'replica lost', event.why);
        this.#options.lost();
        return this.#settle(event.token, new ReplicationError('ERR_STATE', why));
      }
    }
  }

  #committed(
    standby: Standby<Spec>,
    { epoch, residentBytes }: { readonly epoch: number; readonly residentBytes: number },
  ): void {
    const first = standby.epoch === 0;
    standby.epoch = epoch;
    standby.residentBytes = residentBytes;
    standby.committedMs = this.#options.clock.nowMs();
    if (standby.state === 'building') standby.state = 'standby';
    if (!first) return;
    for (const { token } of this.#others(standby)) this.#forget(token);
    const why = `generation ${standby.generation} of node ${standby.node.name}`;
    this.#options.note(standby.name, 'replica stands by', why);
  }

  #others({ name, token }: Standby<Spec>): readonly Standby<Spec>[] {
    return this.all.filter((other) => other.name === name && other.token !== token);
  }

  /** One that is being promoted tells of it all the same. */
  #forget(token: string): void {
    const standby = this.#all.get(token);
    this.#native?.drop(token);
    if (standby === undefined || standby.state === 'expected') this.#all.delete(token);
    else standby.reason = 'dropped';
  }

  #settle(token: string, error?: ReplicationError): void {
    const asked = this.#asked.get(token);
    this.#asked.delete(token);
    if (error === undefined) asked?.resolve();
    else asked?.reject(error);
  }
}
