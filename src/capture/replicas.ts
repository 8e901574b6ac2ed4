/**
 * Where the replicas of one group are. Asks nodes to keep one, records who is in sync before it may
 * matter, and brings back whoever is out, with growing delays.
 */
import { deferred, type Deferred } from '../base/deferred.js';
import { describe, ReplicationError } from '../base/errors.js';
import type { NativeDrill, NativeGroup, NativeHome } from '../native/group.js';
import { drillSpec, homesOf, peersOf, type GroupHost, type GroupSpec } from './group-spec.js';

export const here = 'self';

export type ReplicaState = 'building' | 'joining' | 'in sync' | 'out';

export interface ReplicaOfGroup {
  /** Its name, or self. */
  readonly node: string;
  readonly rank: number;
  readonly state: ReplicaState;
  /** Of one that is out. */
  readonly why: string | null;
  /** Committed last. */
  readonly epoch: number;
  readonly residentBytes: number;
}

interface Out {
  readonly why: string;
  readonly delayMs: number;
}

const delayMsMin = 1000;
const delayMsMax = 10_000;
/** A thread that gets to no system call in this time is still computing. */
const drillRunUs = 300_000;
const drillMsMax = 600_000;

/** The native side has no name for this machine. */
const nativeName = (node: string): string => (node === here ? '' : node);
export const nativeNode = (node: string | undefined): string | undefined =>
  node === undefined ? undefined : nativeName(node);
const nameOf = (native: string): string => (native === '' ? here : native);

const noneThere = (node: string, why: string): ReplicationError =>
  new ReplicationError('ERR_STATE', `node ${node} has no replica of it: ${why}`);
const asError = (error: unknown): Error =>
  error instanceof Error ? error : new Error(describe(error));

type Host = Pick<GroupHost, 'clock' | 'note' | 'peers'>;

export class GroupReplicas {
  readonly #spec: GroupSpec;
  readonly #host: Host;
  readonly #out = new Map<string, Out>();
  readonly #inSync = new Set<string>();
  /** Asked for by a move, beside those of the options. */
  readonly #more: string[] = [];
  readonly #wanted = new Map<string, Deferred<void>>();
  #running: { native: NativeGroup; hostPid: number; generation: number } | undefined;
  #over = new AbortController();
  #drill: Deferred<NativeDrill> | undefined;

  constructor(spec: GroupSpec, host: Host) {
    this.#spec = spec;
    this.#host = host;
  }

  get #nodes(): readonly string[] {
    return [...homesOf(this.#spec), ...this.#more];
  }

  /** Have a replica expected wherever one is to be. Throws when none can be, or not all of `all`. */
  async expect(hostPid: number, generation: number, all: boolean): Promise<readonly NativeHome[]> {
    this.#end();
    const homes: NativeHome[] = [];
    let failure: unknown;
    for (const node of this.#nodes) {
      try {
        homes.push(await this.#home(node, hostPid, generation));
      } catch (error) {
        if (all) throw error;
        failure = error;
        this.#out.set(node, { why: describe(error), delayMs: delayMsMin });
      }
    }
    if (homes.length === 0) throw failure;
    return homes;
  }

  async #home(
    node: string,
    hostPid: number,
    generation: number,
    spec = this.#spec,
  ): Promise<NativeHome> {
    if (node === here) return { node: '', place: null };
    const place = await peersOf(this.#host).place(spec, node, hostPid, generation);
    return { node, place };
  }

  /** The first epoch is committed. Resolves when that is recorded. */
  async started(native: NativeGroup, hostPid: number, generation: number): Promise<void> {
    this.#running = { native, hostPid, generation };
    for (const { node, state } of native.parts().replicas) {
      if (state === 'in sync') this.#inSync.add(nameOf(node));
    }
    await this.#record();
    for (const [node, { why }] of this.#out) {
      this.#host.note(this.#spec.name, 'replica out', `${node}: ${why}`);
      void this.#bringBack(node);
    }
  }

  /** The group goes on without it; a commit waits until that is recorded. */
  async lost(native: NativeGroup, nativeNode: string, why: string): Promise<void> {
    const node = nameOf(nativeNode);
    const wasInSync = this.#inSync.delete(node);
    const running = this.#running;
    if (this.#refuse(node, noneThere(node, why))) {
      if (wasInSync) await this.#recordOut(native);
      if (running !== undefined) this.#host.peers?.drop(this.#spec, node, running.generation);
      return native.recorded(nativeNode);
    }
    const before = this.#out.get(node);
    const delayMs = Math.min((before?.delayMs ?? delayMsMin / 2) * 2, delayMsMax);
    this.#out.set(node, { why, delayMs });
    if (wasInSync || before === undefined) {
      this.#host.note(this.#spec.name, 'replica out', `${node}: ${why}`);
    }
    if (wasInSync) await this.#recordOut(native);
    native.recorded(nativeNode);
    if (this.#running !== undefined) void this.#bringBack(node);
  }

  async joined(nativeNode: string, epoch: number): Promise<void> {
    const node = nameOf(nativeNode);
    this.#out.delete(node);
    this.#inSync.add(node);
    await this.#record();
    this.#wanted.get(node)?.resolve();
    this.#wanted.delete(node);
    this.#host.note(this.#spec.name, 'replica in sync', `${node}, since epoch ${epoch}`);
  }

  /** Resolves when a replica there is in sync; throws why there can be none. */
  async want(node: string): Promise<void> {
    if (this.#inSync.has(node)) return;
    const asked = this.#wanted.get(node);
    if (asked !== undefined) return asked.promise;
    this.#checkAllInRam();
    const wanted = deferred<void>();
    this.#wanted.set(node, wanted);
    if (!this.#nodes.includes(node)) {
      this.#more.push(node);
      this.#out.set(node, { why: 'it is being built', delayMs: 0 });
      void this.#bringBack(node);
    }
    await wanted.promise;
  }

  /** What joins gets pages, and none that are in the page store. */
  #checkAllInRam(): void {
    if (this.#spec.ram === 'all') return;
    const why = `with --ram ${this.#spec.ram} it has one here alone`;
    throw new ReplicationError('ERR_STATE', why, {
      advice: 'protect it again with --ram all',
    });
  }

  /** Of one that is wanted, one failure is enough. True: it was, and is wanted no more. */
  #refuse(node: string, error: Error): boolean {
    const wanted = this.#wanted.get(node);
    this.#wanted.delete(node);
    wanted?.reject(error);
    const extra = this.#more.indexOf(node);
    if (extra < 0) return false;
    this.#more.splice(extra, 1);
    this.#out.delete(node);
    return true;
  }

  /** Has one more replica made there and tried out. Throws ERR_STATE, and why there can be none. */
  async drill(node: string): Promise<NativeDrill> {
    this.#checkAllInRam();
    const running = this.#running;
    if (running === undefined) throw noneThere(node, 'the group is not protected');
    if (this.#drill !== undefined) {
      throw new ReplicationError('ERR_STATE', `a drill of ${this.#spec.name} is under way`);
    }
    const answer = deferred<NativeDrill>();
    this.#drill = answer;
    try {
      const spec = drillSpec(this.#spec);
      const { native, hostPid, generation } = running;
      const home = await this.#home(node, hostPid, generation, spec);
      if (!native.drill(spec.name, home, drillRunUs)) {
        throw noneThere(node, 'another one is being built: try again');
      }
      void this.#host.clock.sleep(drillMsMax, this.#over.signal).then(() => {
        answer.reject(
          noneThere(node, `the drill is not over after ${drillMsMax / 60_000} minutes`),
        );
      });
      return await answer.promise;
    } finally {
      this.#drill = undefined;
    }
  }

  drilled(outcome: NativeDrill): void {
    const { node, epoch, problem } = outcome;
    const would = problem === '' ? `would run, from epoch ${epoch}` : `would not run: ${problem}`;
    this.#host.note(this.#spec.name, 'drill', `${nameOf(node)}: ${would}`);
    this.#drill?.resolve(outcome);
  }

  /** By rank. */
  status(): readonly ReplicaOfGroup[] {
    const parts = this.#running?.native.parts().replicas ?? [];
    return this.#nodes.map((node, index) => {
      const part = parts.find((one) => one.node === nativeName(node));
      return {
        ...{ node, rank: index + 1, state: part?.state ?? 'out' },
        why: part === undefined || part.state === 'out' ? (this.#out.get(node)?.why ?? null) : null,
        epoch: part?.epoch ?? 0,
        residentBytes: part?.residentBytes ?? 0,
      };
    });
  }

  /** The native group is over. */
  stop(): void {
    this.#end();
  }

  #end(): void {
    this.#over.abort();
    const over = 'the group moves on';
    this.#drill?.reject(noneThere(here, over));
    for (const node of this.#wanted.keys()) this.#refuse(node, noneThere(node, over));
    this.#over = new AbortController();
    this.#running = undefined;
    this.#out.clear();
    this.#inSync.clear();
  }

  /** Tries until it is on its way; what becomes of that is told by lost() or joined(). */
  async #bringBack(node: string): Promise<void> {
    const { signal } = this.#over;
    for (;;) {
      await this.#host.clock.sleep(this.#out.get(node)?.delayMs ?? 0, signal);
      const running = this.#running;
      if (signal.aborted || running === undefined || !this.#out.has(node)) return;
      const { native, hostPid, generation } = running;
      try {
        const home = await this.#home(node, hostPid, generation);
        if (signal.aborted) return;
        if (native.join(this.#nodes.indexOf(node), home)) return;
        this.#out.set(node, { why: 'another one is being built', delayMs: delayMsMin });
      } catch (error) {
        if (signal.aborted || this.#refuse(node, asError(error))) return;
        const delayMs = Math.max(delayMsMin, (this.#out.get(node)?.delayMs ?? 0) * 2);
        this.#out.set(node, { why: describe(error), delayMs: Math.min(delayMs, delayMsMax) });
      }
    }
  }

  /** Who cannot be told that somebody is out would not know who may be promoted: it is out as well. */
  async #recordOut(native: NativeGroup): Promise<void> {
    for (const node of await this.#record()) {
      if (this.#inSync.size > 1) {
        native.leaveOut(nativeName(node), 'it does not record who is in sync');
      }
    }
  }

  async #record(): Promise<readonly string[]> {
    const running = this.#running;
    if (running === undefined || this.#nodes.every((node) => node === here)) return [];
    const record = this.#host.peers?.record({
      ...{ name: this.#spec.name, id: this.#spec.storeId, generation: running.generation },
      inSync: [...this.#inSync],
    });
    return (await record) ?? [];
  }
}
