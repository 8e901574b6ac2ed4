/**
 * Drives one group: carries out what the pure machine of group-state.ts decides, takes epochs at
 * the pace of pace-policy.ts, and protects again what was promoted. Promotion itself happens in
 * native code and waits for nobody here.
 */
import { assertNever } from '../base/assert.js';
import { deferred, type Deferred } from '../base/deferred.js';
import { describe, ReplicationError } from '../base/errors.js';
import { QuantileWindow } from '../base/quantiles.js';
import type { NativeCheckpointReport } from '../native/checkpoint.js';
import type {
  EpochStats,
  NativeGroup,
  NativeGroupEvent,
  NativeMapping,
  PromotionReport,
  StartReport,
} from '../native/group.js';
import { describeDeath, inWords } from './death.js';
import { takeCheckpoint } from './checkpoint.js';
import { Evictions, type Evicted } from './evict-request.js';
import type { GroupSnapshot, PagingTurn } from './group-snapshot.js';
import type { KeeperStatus } from '../native/keeper-status.js';
import {
  checkKept,
  checkPromotable,
  asOwnError,
  asStartError,
  isLost,
  notPaged,
  overError,
  overText,
  reasonOf,
} from './group-errors.js';
import {
  announcementOf,
  hasPeers,
  ranElsewhere,
  type GroupHost,
  type GroupSpec,
} from './group-spec.js';
import { nativeOptions } from './native-options.js';
import { damageText, dismissKeeper, forgetStoreAfter, howItEnded } from './former-keeper.js';
import {
  isFirstStart,
  isOver,
  step,
  type GroupCore,
  type GroupEffect,
  type GroupEvent,
} from './group-state.js';
import { firstPace, nextPace, type Pace } from './pace-policy.js';
import { takePagingTurns } from './paging-turns.js';
import { watchPromoted } from './promoted-watch.js';
import { GroupReplicas, nativeNode } from './replicas.js';

const pauseSamples = 1024;
/** An epoch that takes longer than this shows as lagging, so that a hung keeper does. */
const epochOverdueMs = 5000;

export class Group {
  readonly spec: GroupSpec;
  readonly #host: GroupHost;
  /** Of the process that the group began with, and no other. */
  readonly #first: { readonly hostPid: number; readonly startTime: string };
  #core: GroupCore;
  #pace: Pace;
  #native: NativeGroup | undefined;
  #start: StartReport | undefined;
  #lastEpoch: EpochStats | undefined;
  /** When the last committed epoch was begun. */
  #lastCommitMs = 0;
  #diedMs: number | undefined;
  #paging: PagingTurn | undefined;
  readonly #evictions = new Evictions();
  readonly #replicas: GroupReplicas;
  #refill: KeeperStatus | undefined;
  /** What was promoted, or a child of it, may still read from the page store. */
  #mayRefill: boolean;
  /** The group has, or had, a directory in the page store. */
  #usesStore: boolean;
  /** What the dying process has given, while pages are still cold. */
  #released: { readonly us: number; readonly pages: number } | undefined;
  /** Why what was promoted was lost while it was let go; empty: it was not. */
  #loss = '';
  /** Of the keeper below which the promoted process runs. */
  #keeperSocket: string | undefined;
  readonly #pauseUs = new QuantileWindow(pauseSamples);
  readonly #closing = new AbortController();
  /** Ends the wait for the next epoch, which may be a minute away. */
  #nap = new AbortController();
  /** Stops and starts of native groups, one after the other. */
  #lifecycle: Promise<void> = Promise.resolve();
  readonly #firstStart = deferred<StartReport>();
  readonly #promotionAsked: Deferred<void>[] = [];
  #promotionNode: string | undefined; // where to; undefined: wherever it is best
  #onProgress: ((bytes: number, bytesTotal: number) => void) | undefined;

  constructor(spec: GroupSpec, host: GroupHost, core: GroupCore, startTime = '') {
    this.spec = spec;
    this.#first = { hostPid: core.hostPid, startTime };
    this.#host = host;
    this.#core = core;
    this.#pace = firstPace(spec);
    this.#mayRefill = core.phase.kind === 'promoted';
    this.#usesStore = spec.ram !== 'all';
    this.#replicas = new GroupReplicas(spec, host);
  }

  get core(): GroupCore {
    return this.#core;
  }

  /** Resolves when the first epoch is committed; throws why not, and the process runs untouched. */
  protect(onProgress?: (bytes: number, bytesTotal: number) => void): Promise<StartReport> {
    this.#onProgress = onProgress;
    this.#enqueueStart(0);
    return this.#firstStart.promise;
  }

  /** Waits for the pages of a promoted process that a restarted daemon found, then protects it. */
  resumePromoted(keeperSocket: string): void {
    this.#watchPromoted(keeperSocket, this.#core.generation);
  }

  /** Resolves when the replica runs. Throws ERR_STATE when there is none to promote. */
  async promote(node?: string): Promise<void> {
    checkPromotable({ name: this.spec.name, ...this.#core });
    this.#promotionNode = node;
    const asked = deferred<void>();
    this.#promotionAsked.push(asked);
    this.#apply({ type: 'promoteAsked' });
    await asked.promise;
  }

  /** While it is kept in step. Throws ERR_STATE, ERR_NO_REPLICA, ERR_ENDED. */
  get replicas(): GroupReplicas {
    checkKept('build a replica of', { name: this.spec.name, ...this.#core });
    return this.#replicas;
  }

  /** The process runs on without us. Resolves when it is let go. Throws ERR_ENDED when it is lost. */
  async unprotect(): Promise<void> {
    this.#apply({ type: 'unprotectAsked' });
    await this.#letGo('unprotect');
  }

  /** Throws ERR_NO_REPLICA or ERR_ENDED when nothing is attached, or the process is lost. */
  async detach(): Promise<void> {
    if (isOver(this.#core.phase.kind)) {
      throw overError('detach', { name: this.spec.name, ...this.#core });
    }
    this.#apply({ type: 'detachAsked' });
    await this.#letGo('detach');
  }

  async #letGo(doing: string): Promise<void> {
    await this.#lifecycle;
    if (this.#loss === '') return;
    throw new ReplicationError('ERR_ENDED', `cannot ${doing} ${this.spec.name}: ${this.#loss}`);
  }

  /** Its process, that nobody guards, has ended. */
  gone(): void {
    const { phase } = this.#core;
    const lost = phase.kind === 'unprotected' ? ` (${phase.reason})` : '';
    this.#apply({ type: 'ended', reason: `it ended while it was ${phase.kind}${lost}` });
  }

  /** The daemon ends: lets the process go and leaves the group's record as it is. */
  async shutdown(): Promise<void> {
    this.#closing.abort();
    this.#nap.abort();
    await this.#enqueue(() => this.#stopNative());
  }

  /** Throws ERR_BAD_REQUEST, ERR_STATE, ERR_NO_REPLICA or ERR_ENDED where no replica is paged. */
  async inspect(cells: number): Promise<readonly NativeMapping[]> {
    if (this.#native && this.#paging && this.#isTakingEpochs(this.#core.generation)) {
      return this.#native.inspect(cells);
    }
    throw notPaged('inspect', { ...this.spec, ...this.#core });
  }

  /** Resolves when the replica is as cold as it may be. Throws as inspect() does, and ERR_STORE. */
  async evict(): Promise<Evicted> {
    if (this.#paging && this.#isTakingEpochs(this.#core.generation)) return this.#evictions.ask();
    throw notPaged('evict', { ...this.spec, ...this.#core });
  }

  checkpoint(keep: boolean): Promise<NativeCheckpointReport> {
    const { spec } = this;
    const native = this.#isTakingEpochs(this.#core.generation) ? this.#native : undefined;
    this.#usesStore ||= native !== undefined;
    const phase = this.#core.phase.kind;
    return takeCheckpoint({ spec, place: this.#host.store, native, phase, keep });
  }

  snapshot(): GroupSnapshot {
    const lagMs = this.#lastCommitMs === 0 ? 0 : this.#host.clock.nowMs() - this.#lastCommitMs;
    return {
      spec: this.spec,
      core: this.#core,
      pace: this.#pace,
      pauseUs: this.#pauseUs,
      lastEpoch: this.#lastEpoch,
      start: this.#start,
      lagMs: Math.round(lagMs * 10) / 10,
      paging: this.#paging,
      refill: this.#refill,
      counters: this.#native?.counters() ?? {},
      parts: this.#native?.parts(),
      replicas: this.#replicas.status(),
    };
  }

  #apply(event: GroupEvent): void {
    const before = this.#core.phase.kind;
    const { group, effects } = step(this.#core, event);
    this.#core = group;
    for (const effect of effects) this.#carryOut(effect);
    if (!isOver(group.phase.kind)) return;
    this.#nap.abort();
    this.#settleWaiters();
    const { kind } = group.phase;
    const over = kind === 'ended' || kind === 'removed';
    // What stands by elsewhere may be all that is left when a promotion came to nothing.
    if (over && before !== kind && (before !== 'promoting' || kind === 'removed')) {
      this.#host.peers?.end(this.spec, group.generation);
    }
    const socket = this.#keeperSocket;
    const reader = this.#mayRefill ? socket : undefined;
    if (over && this.#usesStore)
      forgetStoreAfter(this.#host, reader, this.spec, this.#closing.signal);
    this.#paging = undefined;
    if (kind !== 'ended' || socket === undefined) return;
    this.#keeperSocket = undefined;
    void dismissKeeper(this.#host, socket, this.#closing.signal);
  }

  #carryOut(effect: GroupEffect): void {
    switch (effect.type) {
      case 'start':
        return this.#enqueueStart(effect.delayMs);
      case 'stop':
        return void this.#enqueue(() => this.#stopNative());
      case 'promote':
        return void this.#promoteNative();
      case 'announce':
        return this.#host.announce(this.spec, announcementOf(effect));
      case 'persist':
        return this.#host.persist();
      case 'note':
        return this.#host.note(this.spec.name, effect.what, effect.why);
      default:
        return assertNever(effect);
    }
  }

  #enqueue(work: () => Promise<void>): Promise<void> {
    this.#lifecycle = this.#lifecycle.then(work).catch((error: unknown) => {
      this.#host.log.error({ group: this.spec.name, reason: describe(error) }, 'group step failed');
    });
    return this.#lifecycle;
  }

  async #stopNative(): Promise<void> {
    const native = this.#native;
    this.#native = undefined;
    this.#replicas.stop();
    if (!native) return;
    this.#loss = inWords(await native.stop());
    if (this.#loss !== '') this.#host.note(this.spec.name, 'lost', this.#loss);
  }

  #enqueueStart(delayMs: number): void {
    void this.#enqueue(async () => {
      await this.#host.clock.sleep(delayMs, this.#closing.signal);
      if (this.#closing.signal.aborted || this.#core.phase.kind !== 'protecting') return;
      // Not awaited: a stop must be able to overtake a long first copy.
      void this.#startNative();
      await Promise.resolve();
    });
  }

  async #startNative(): Promise<void> {
    const { generation } = this.#core;
    try {
      const native = await this.#createNative(generation);
      this.#native = native;
      const report = await native.start();
      if (this.#core.generation !== generation) return;
      await this.#replicas.started(native, this.#core.hostPid, generation);
      if (this.#core.generation !== generation) return;
      this.#start = report;
      this.#lastCommitMs = this.#host.clock.nowMs();
      this.#diedMs = undefined;
      this.#pace = firstPace(this.spec);
      this.#apply({ type: 'started', epoch: report.epoch });
      this.#firstStart.resolve(report);
      void this.#takeEpochs(native, generation);
      void takePagingTurns(this.#host, this.spec, native, {
        goOn: () => this.#isTakingEpochs(generation),
        report: (paging, why) => (this.#paging = { ...paging, why }),
        signal: this.#closing.signal,
        evictions: this.#evictions,
      });
    } catch (error) {
      this.#firstStart.reject(asStartError(error, this.#core.hostPid));
      if (this.#core.generation === generation) await this.#startFailed(error, generation);
    }
  }

  async #startFailed(error: unknown, generation: number): Promise<void> {
    const reason = reasonOf(error) + damageText(this.#refill?.damagedPages ?? 0);
    if (isFirstStart(this.#core) || this.#host.processAlive(this.#core.hostPid)) {
      return this.#apply({ type: 'startFailed', reason, patient: hasPeers(this.spec) });
    }
    const how =
      (await howItEnded(this.#host, this.#keeperSocket, this.#closing.signal)) ??
      `ended (${reason})`;
    if (this.#core.generation !== generation) return;
    this.#apply({ type: 'ended', reason: `it ${how} before it was protected again` });
  }

  async #createNative(generation: number): Promise<NativeGroup> {
    const { spec } = this;
    const { hostPid } = this.#core;
    const startTime = hostPid === this.#first.hostPid ? this.#first.startTime : '';
    const all = isFirstStart(this.#core);
    const homes = await this.#replicas.expect(hostPid, generation, all);
    if (this.#core.generation !== generation || this.#core.phase.kind !== 'protecting') {
      throw new ReplicationError('ERR_ENDED', overText(spec.name, this.#core.phase));
    }
    const options = nativeOptions(spec, this.#core, this.#host, { startTime, homes });
    return this.#host.createNative(options, (event) => this.#onNativeEvent(generation, event));
  }

  /** Late events of a native group that was replaced are ignored. */
  #onNativeEvent(generation: number, event: NativeGroupEvent): void {
    if (generation !== this.#core.generation || this.#closing.signal.aborted) return;
    switch (event.type) {
      case 'progress':
        this.#onProgress?.(event.bytes, event.bytesTotal);
        return this.#apply(event);
      case 'died':
        this.#diedMs = this.#host.clock.nowMs();
        return this.#apply({ type: 'died', cause: event.cause, reason: describeDeath(event) });
      case 'promoted':
        if (event.node) return this.#ranElsewhere(event);
        this.#mayRefill = true;
        this.#apply({ type: 'promoted', report: { ...event, lostMs: this.#lostMs(event.exact) } });
        this.#settleWaiters();
        return this.#watchPromoted(event.keeperSocket, generation);
      case 'ended':
        return this.#apply({ type: 'ended', reason: inWords(event.reason) });
      case 'unprotected':
        return this.#lost(inWords(event.reason));
      case 'replicaOut':
        return void (this.#native && this.#replicas.lost(this.#native, event.node, event.why));
      case 'drilled':
        return this.#replicas.drilled(event);
      case 'replicaInSync':
        return void this.#replicas.joined(event.node, event.epoch);
      case 'drained':
        // What is cold comes from the store: the keeper says when it is all there.
        if (this.spec.ram === 'all') return this.#apply(event);
        this.#released = event;
        return;
      default:
        return assertNever(event);
    }
  }

  #lostMs(exact: boolean): number | undefined {
    if (exact || this.#lastCommitMs === 0) return exact ? 0 : undefined;
    return Math.max(0, (this.#diedMs ?? this.#host.clock.nowMs()) - this.#lastCommitMs);
  }

  /** One epoch after the other, at the pace that their cost allows, until the group moves on. */
  async #takeEpochs(native: NativeGroup, generation: number): Promise<void> {
    const { clock } = this.#host;
    this.#nap.abort(); // of the generation before
    let startedMs = clock.nowMs();
    let errors = 0;
    let failingSinceMs = 0;
    while (!this.#closing.signal.aborted) {
      this.#nap = new AbortController();
      await clock.sleep(startedMs + this.#pace.intervalMs - clock.nowMs(), this.#nap.signal);
      if (this.#closing.signal.aborted || !this.#isTakingEpochs(generation)) return;
      const elapsedMs = clock.nowMs() - startedMs;
      startedMs = clock.nowMs();
      try {
        const stats = await this.#epochOrLagging(native, generation);
        if (!this.#isTakingEpochs(generation)) return;
        this.#epochDone(stats, startedMs, elapsedMs);
        errors = 0;
      } catch (error) {
        if (!this.#isTakingEpochs(generation)) return;
        const reason = reasonOf(error);
        this.#apply({ type: 'abandoned', reason });
        if (++errors === 1) failingSinceMs = clock.nowMs();
        if (isLost(error, errors, clock.nowMs() - failingSinceMs)) {
          this.#lost(reason);
        }
      }
    }
  }

  /** Another node may be back soon; what is lost here is lost for good. */
  #lost(reason: string): void {
    this.#apply({ type: 'lost', reason, again: hasPeers(this.spec) });
  }

  #ranElsewhere(report: PromotionReport): void {
    this.#promotionAsked.splice(0).forEach((asked) => asked.resolve());
    const reason = ranElsewhere({ ...report, lostMs: this.#lostMs(report.exact) });
    this.#apply({ type: 'ended', reason });
    this.#host.announceLeft(this.spec, announcementOf({ ...this.#core, report, reason }));
  }

  async #epochOrLagging(native: NativeGroup, generation: number): Promise<EpochStats> {
    // Real time, since it is about something real that hangs.
    const overdue = setTimeout(() => {
      const reason = `the epoch takes longer than ${epochOverdueMs / 1000} s`;
      if (this.#isTakingEpochs(generation)) this.#apply({ type: 'late', reason });
    }, epochOverdueMs);
    try {
      return await native.epoch();
    } finally {
      clearTimeout(overdue);
    }
  }

  #isTakingEpochs(generation: number): boolean {
    const { kind } = this.#core.phase;
    return this.#core.generation === generation && (kind === 'protected' || kind === 'lagging');
  }

  #epochDone(stats: EpochStats, startedMs: number, elapsedMs: number): void {
    this.#pauseUs.add(stats.pauseUs);
    this.#pace = nextPace(this.spec, this.#pace, { ...stats, elapsedMs }, this.#host.processors);
    if (stats.abandoned) {
      this.#apply({ type: 'abandoned', reason: stats.reason ?? 'no reason given' });
      return;
    }
    this.#lastEpoch = stats;
    this.#refill = undefined; // all of its memory could be read
    this.#lastCommitMs = startedMs;
    this.#apply({ type: 'committed', epoch: stats.epoch });
  }

  async #promoteNative(): Promise<void> {
    const { generation } = this.#core;
    try {
      const report = await this.#native?.promote(nativeNode(this.#promotionNode));
      // The event usually came first, and this one is then of an older generation.
      if (report) this.#onNativeEvent(generation, { type: 'promoted', ...report });
    } catch (error) {
      this.#promotionAsked.splice(0).forEach((asked) => asked.reject(asOwnError(error)));
      if (this.#core.generation !== generation) return;
      this.#apply({ type: 'promoteFailed', reason: inWords(describe(error)) });
      if (this.#native && this.#isTakingEpochs(generation)) {
        void this.#takeEpochs(this.#native, generation);
      }
    }
  }

  #watchPromoted(keeperSocket: string, generation: number): void {
    const former = this.#keeperSocket;
    if (former !== undefined && former !== keeperSocket) {
      void dismissKeeper(this.#host, former, this.#closing.signal);
    }
    this.#keeperSocket = keeperSocket;
    void watchPromoted(this.#host, this.spec.name, keeperSocket, {
      signal: this.#closing.signal,
      core: () => (this.#core.generation === generation ? this.#core : undefined),
      isTold: () => !this.#core.resumed || this.#native !== undefined,
      seen: (missing, refill) => {
        this.#mayRefill = missing;
        this.#refill = refill;
      },
      takeReleased: () => {
        const released = this.#released;
        this.#released = undefined;
        return released;
      },
      apply: (event) => this.#apply(event),
    });
  }

  #settleWaiters(): void {
    const { phase } = this.#core;
    const asked = this.#promotionAsked.splice(0);
    if (!isOver(phase.kind)) return asked.forEach((one) => one.resolve());
    const over = new ReplicationError('ERR_ENDED', overText(this.spec.name, phase));
    asked.forEach((one) => one.reject(over));
    this.#firstStart.reject(over);
  }
}
