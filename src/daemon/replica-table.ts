/**
 * The node's replica table: which groups exist, and what a caller may do with them. This is what
 * stands behind the API; it checks rights, then hands over to the group.
 */
import type { Caller, DaemonControl } from '../api/server.js';
import type {
  CheckpointReport,
  EventRecord,
  EvictReport,
  GroupBrief,
  GroupStatus,
  InspectedProcess,
  KernelReport,
  KeyReport,
  PromoteRequest,
  ProtectReport,
  ProtectRequest,
  RestoreReport,
  RestoreRequest,
  StatusReport,
} from '../api/schema.js';
import { ReplicationError } from '../base/errors.js';
import { Group } from '../capture/group.js';
import type { GroupReplicas } from '../capture/replicas.js';
import type { GroupHost, Owner } from '../capture/group-spec.js';
import { isFirstStart, isOver, newGroup } from '../capture/group-state.js';
import type { NativeAddon } from '../native/binding.js';
import { checkpointReport, removeCheckpoints } from './checkpoints.js';
import type { DaemonConfig } from './config.js';
import type { EventRing } from './event-ring.js';
import { freeGeneration, freeName } from './free-names.js';
import { groupBrief, groupStatus } from './group-status.js';
import { cellsShown, inspectedProcesses } from './inspected.js';
import { defaultOutput, newSpec } from './new-spec.js';
import { checkOutsiders, makeOutputFile } from './outsiders.js';
import {
  filesShared,
  filesWritten,
  isAlive,
  namesInTree,
  readProcess,
  supplementaryGroups,
  type ProcessFacts,
} from './process-facts.js';
import type { KeptReplicas } from './kept-replicas.js';
import type { ReplicaPeers } from './replica-peers.js';
import { ReplicaRam } from './replica-ram.js';
import { Restorer } from './restorer.js';
import { StandbyActions } from './standby-actions.js';
import { exportedKey } from './store-key.js';
import { ServiceAddresses } from './service-addresses.js';
import type { GroupRecord } from './state-file.js';
import { checkTarget, fileRuleWarnings, warningsFor } from './target-check.js';

export interface TableOptions {
  readonly config: DaemonConfig;
  readonly node: string;
  readonly version: string;
  readonly native: NativeAddon;
  readonly events: EventRing;
  readonly host: GroupHost;
  /** Resolves when what was given to `host.persist` so far is in the state file, or cannot be. */
  persisted(): Promise<void>;
  /** The state file is to be written. */
  record(): void;
  readonly peers: ReplicaPeers;
  readonly kept: KeptReplicas;
  /** About the daemon itself, for whoever relies on it. */
  warnings(): readonly string[];
}

export class ReplicaTable implements DaemonControl {
  readonly #options: TableOptions;
  readonly addresses: ServiceAddresses;
  readonly #groups = new Map<string, Group>();
  /** Of each group's process, read once: its pid may be another's later. */
  readonly #startTimes = new WeakMap<
    Group,
    { readonly hostPid: number; readonly startTime: string }
  >();
  readonly #ram = new WeakMap<Group, ReplicaRam>();
  readonly #startedMs: number;
  readonly #restorer: Restorer;
  readonly #standbys: StandbyActions;
  /** Per name of a group, who was not told of its last promotion, and why. */
  readonly #untold = new Map<string, readonly string[]>();

  constructor(options: TableOptions) {
    this.#options = options;
    this.#startedMs = options.host.clock.nowMs();
    const { native, host, config } = options;
    this.addresses = new ServiceAddresses({
      ...{ native, log: host.log },
      note: (...what) => host.note(...what),
      groups: () => this.groups,
      record: () => options.record(),
      recorded: () => options.persisted(),
    });
    this.#standbys = new StandbyActions(options.peers, options.kept);
    this.#restorer = new Restorer({
      ...{ native, host, config },
      running: () => this.groups.filter((group) => this.#runs(group)),
      add: (group, startTime) => this.add(group, startTime),
    });
  }

  /** Takes in a group that a restarted daemon found. */
  add(group: Group, startTime: string): void {
    this.#groups.set(group.spec.name, group);
    this.#startTimes.set(group, { hostPid: group.core.hostPid, startTime });
  }

  get groups(): readonly Group[] {
    return [...this.#groups.values()];
  }

  /** A group whose first epoch is not committed is nobody's promise yet. */
  records(): readonly GroupRecord[] {
    const promised = this.groups.filter(({ core }) => !isFirstStart(core));
    return promised.map((group) => {
      const { core, spec } = group;
      const address = this.addresses.recordOf(spec.name);
      return { spec, core, startTime: this.#startTimeOf(group), address };
    });
  }

  /** After a promotion: what outsiders of the group could not be told. */
  told(name: string, problems: readonly string[]): void {
    if (problems.length === 0) this.#untold.delete(name);
    else this.#untold.set(name, problems);
    for (const problem of problems) this.#options.host.note(name, 'outsider not told', problem);
  }

  /** Ends the groups whose process has gone while nobody guarded it; call it now and then. */
  sweep(): void {
    void this.addresses.settle();
    for (const group of this.groups) {
      const { kind } = group.core.phase;
      if ((kind === 'detached' || kind === 'unprotected') && !this.#runs(group)) group.gone();
    }
  }

  /** The group's very process, and not another that got its pid. */
  #runs(group: Group): boolean {
    const facts = readProcess(group.core.hostPid);
    if (!isAlive(facts)) return false;
    const startTime = this.#startTimeOf(group);
    return startTime === '' || startTime === facts.startTime;
  }

  #startTimeOf(group: Group): string {
    const { hostPid } = group.core;
    const known = this.#startTimes.get(group);
    if (known?.hostPid === hostPid) return known.startTime;
    const startTime = readProcess(hostPid)?.startTime ?? '';
    this.#startTimes.set(group, { hostPid, startTime });
    return startTime;
  }

  status(caller: Caller): StatusReport {
    this.sweep();
    const { node, version, host } = this.#options;
    const uptimeMs = Math.round(host.clock.nowMs() - this.#startedMs);
    return {
      node,
      daemon: { pid: process.pid, uptimeMs, version, warnings: this.#options.warnings() },
      groups: this.groups.map((group) => this.#show(caller, group)),
      ...this.#standbys.seenBy(caller),
    };
  }

  /** Whether a process of that group runs here, protected or not. */
  runsHere(name: string): boolean {
    const group = this.#groups.get(name);
    return group !== undefined && this.#runs(group);
  }

  async group(caller: Caller, name: string): Promise<GroupStatus> {
    const group = this.#allowed(caller, name);
    await this.#ramOf(group).look(group.snapshot());
    return this.#statusOf(group);
  }

  async protect(
    caller: Caller,
    request: ProtectRequest,
    watch: { onProgress(bytes: number, bytesTotal: number): void; signal: AbortSignal },
  ): Promise<ProtectReport> {
    const { host, config } = this.#options;
    const facts = this.#checkTarget(caller, request.pid);
    const same = this.#overOf(facts);
    const name = request.name ?? same?.spec.name ?? this.#nameOf(facts);
    const named = this.#replaceable(caller, name);
    const left = [...new Set([named, same])].filter((group) => group !== undefined);
    if (left.length === 0 && this.#groups.size >= config.groupsMax) {
      throw new ReplicationError('ERR_LIMIT', `there are ${config.groupsMax} groups already`, {
        advice: 'unprotect groups that have ended',
      });
    }
    const before = same ?? (named?.core.phase.kind === 'detached' ? named : undefined);
    const owner = ownerOf(caller);
    const vip = this.addresses.usual(request.vip);
    const asked = { ...request, vip, ...this.#standbys.chosen(request) };
    const from = { caller: owner, before: before?.spec, logDir: config.logDir };
    const { spec, takenOver, warnings } = newSpec(name, asked, from);
    this.#standbys.checkHomes(spec);
    const generation = this.#generationOf(name, named);
    const core = newGroup(facts.pid, generation, spec.retries);
    const group = new Group(spec, host, core, facts.startTime);
    this.add(group, facts.startTime);
    try {
      const report = await this.#firstEpoch(group, watch);
      if (same !== undefined && same.spec.name !== name) this.#rename(same, name);
      return { ...report, warnings: [...warnings, ...report.warnings], takenOver };
    } catch (error) {
      // What it was to take the place of keeps its options for the next try.
      if (named !== undefined && !this.#groups.has(name)) {
        this.#groups.set(name, named);
        host.persist();
      }
      throw error;
    }
  }

  /** Throws as checkTarget does; of a pid that only the process itself knows it says more. */
  #checkTarget(caller: Caller, pid: number): ProcessFacts {
    const { native, host } = this.#options;
    const knowing = isAlive(readProcess(pid)) ? undefined : this.#knownToItselfAs(pid);
    if (knowing !== undefined && this.#mayAct(caller, knowing)) {
      const { core, spec } = knowing;
      const message = `cannot protect process ${pid}: there is no such process on this machine`;
      throw new ReplicationError('ERR_NO_PROCESS', message, {
        advice:
          `the process of group ${spec.name} knows itself as ${pid}, as one that was promoted ` +
          `does; here it is process ${core.hostPid}: replpage status ${spec.name}`,
      });
    }
    return checkTarget(
      {
        mayTrace: (who, target) => native.mayTrace(who, target),
        keeperPath: host.paths.keeperPath,
        daemonPid: process.pid,
        groupOf: (target) => this.#groupOf(target),
      },
      caller,
      pid,
    );
  }

  #knownToItselfAs(pid: number): Group | undefined {
    return this.groups.find(({ core }) => {
      const facts = isOver(core.phase.kind) ? undefined : readProcess(core.hostPid);
      return isAlive(facts) && facts.ownPid === pid;
    });
  }

  /** The group that was over this very process, and guards it no longer. */
  #overOf(facts: ProcessFacts): Group | undefined {
    return this.groups.find(
      (group) =>
        isOver(group.core.phase.kind) &&
        group.core.hostPid === facts.pid &&
        this.#startTimeOf(group) === facts.startTime,
    );
  }

  #rename(group: Group, name: string): void {
    this.#options.host.note(group.spec.name, 'renamed', `its process is in group ${name} now`);
    this.#forget(group);
  }

  async #firstEpoch(
    group: Group,
    watch: { onProgress(bytes: number, bytesTotal: number): void; signal: AbortSignal },
  ): Promise<Omit<ProtectReport, 'takenOver'>> {
    const { name, stdio, owner } = group.spec;
    const giveUp = (): void => void group.unprotect().catch(() => undefined);
    watch.signal.addEventListener('abort', giveUp);
    try {
      const { logDir } = this.#options.config;
      await checkOutsiders(group.spec, this.#options.host.log);
      await this.addresses.check(group);
      if (stdio !== null && stdio === defaultOutput(logDir, name)) {
        await makeOutputFile(logDir, name, owner);
      }
      const report = await group.protect((bytes, total) => watch.onProgress(bytes, total));
      // Whoever was told that a process is protected relies on it from then on.
      await this.#options.persisted();
      const addressed = await this.addresses.taken(group);
      const { copiedBytes, copyUs } = report;
      const status = this.#statusOf(group);
      const pid = status.hostPid;
      const warnings = [
        ...status.warnings,
        ...addressed,
        ...(group.spec.files === 'refuse'
          ? fileRuleWarnings(filesWritten(pid), filesShared(pid))
          : []),
        ...this.#options.warnings(),
      ];
      return { group: status, copiedBytes, copyUs, warnings };
    } catch (error) {
      this.#forget(group);
      throw error;
    } finally {
      watch.signal.removeEventListener('abort', giveUp);
    }
  }

  async pages(caller: Caller, name: string): Promise<readonly InspectedProcess[]> {
    const group = this.#allowed(caller, name);
    const mappings = await group.inspect(cellsShown);
    return inspectedProcesses(mappings, namesInTree(group.core.hostPid));
  }

  async evict(caller: Caller, name: string): Promise<EvictReport> {
    const group = this.#allowed(caller, name);
    const beganMs = this.#options.host.clock.nowMs();
    const { evictedBytes } = await group.evict();
    const ms = Math.round(this.#options.host.clock.nowMs() - beganMs);
    return { group: this.#statusOf(group), evictedBytes, ms };
  }

  async checkpoint(caller: Caller, name: string, keep: boolean): Promise<CheckpointReport> {
    return checkpointReport(this.#options.host, this.#allowed(caller, name), keep);
  }

  readonly removeCheckpoints: DaemonControl['removeCheckpoints'] = (caller, request) =>
    removeCheckpoints(this.#options, ownerOf(caller), request, this.#groups.get(request.from));

  async restore(caller: Caller, request: RestoreRequest): Promise<RestoreReport> {
    const { group, ...report } = await this.#restorer.restore(ownerOf(caller), request, (name) =>
      this.#generationOf(name, this.#replaceable(caller, name)),
    );
    await this.#options.persisted();
    return { group: this.#statusOf(group), ...report };
  }

  key(caller: Caller): KeyReport {
    return exportedKey(caller, this.#options.config.storeKeyPath, this.#options.native);
  }

  async promote(caller: Caller, name: string, how: PromoteRequest): Promise<GroupStatus> {
    if (this.#standbys.has(name) && !this.runsHere(name)) {
      await this.#standbys.promote(caller, name, how);
      return this.#statusOf(this.#allowed(caller, name));
    }
    const group = this.#allowed(caller, name);
    await group.promote(this.#standbys.placeOf(group, how.to, this.#options.node));
    return this.#statusOf(group);
  }

  /** Of a group that is kept in step. Throws ERR_STATE. */
  replicasOf(caller: Caller, name: string): GroupReplicas {
    return this.#allowed(caller, name).replicas;
  }

  async unprotect(caller: Caller, name: string): Promise<GroupStatus> {
    const group = this.#allowed(caller, name);
    try {
      await group.unprotect();
    } finally {
      await this.addresses.settle();
      this.#forget(group);
      await this.#options.persisted();
    }
    return this.#statusOf(group);
  }

  async detach(caller: Caller, name: string): Promise<GroupStatus> {
    const group = this.#allowed(caller, name);
    await group.detach();
    return this.#statusOf(group);
  }

  events(caller: Caller, after: number): readonly EventRecord[] {
    return this.#options.events.since(after).filter((event) => this.#maySee(caller, event));
  }

  onEvent(caller: Caller, listener: (event: EventRecord) => void): () => void {
    return this.#options.events.listen((event) => {
      if (this.#maySee(caller, event)) listener(event);
    });
  }

  kernel(): KernelReport {
    return this.#options.native.probeKernel();
  }

  /** The kernel's own rule on what runs; of what has ended, or is about to, whose it was. */
  #mayAct(caller: Caller, group: Group): boolean {
    if (caller.uid === 0) return true;
    const isOwner = caller.uid === group.spec.owner.uid;
    if (!this.#runs(group)) return isOwner;
    try {
      return this.#options.native.mayTrace(caller, group.core.hostPid).allowed;
    } catch {
      return isOwner;
    }
  }

  #maySee(caller: Caller, event: EventRecord): boolean {
    const group = this.#groups.get(event.group);
    return group === undefined ? caller.uid === 0 : this.#mayAct(caller, group);
  }

  #allowed(caller: Caller, name: string): Group {
    this.sweep();
    const group = this.#groups.get(name);
    if (group === undefined) throw this.#standbys.noGroup(caller, name);
    if (!this.#mayAct(caller, group)) {
      throw new ReplicationError('ERR_DENIED', `user ${caller.uid} may not act on group ${name}`, {
        advice: 'it takes the right to trace its process: act as its user or as root',
      });
    }
    return group;
  }

  #show(caller: Caller, group: Group): GroupStatus | GroupBrief {
    if (this.#mayAct(caller, group)) return this.#statusOf(group);
    return groupBrief(group.snapshot(), this.#options.node);
  }

  #statusOf(group: Group): GroupStatus {
    const { node, config } = this.#options;
    const { hostPid, phase } = group.core;
    const running = this.#runs(group);
    const facts = isOver(phase.kind) || !running ? undefined : readProcess(hostPid);
    const untold = this.#untold.get(group.spec.name) ?? [];
    const warnings = [
      ...(facts === undefined ? [] : warningsFor(facts)),
      ...untold.map((problem) => `the last promotion was not told everywhere: ${problem}`),
    ];
    const { keepersDir, storeDir } = config;
    const snapshot = group.snapshot();
    return groupStatus(snapshot, {
      ram: this.#ram.get(group)?.last(snapshot),
      node,
      keepersDir,
      storeDir,
      ownPid: facts?.ownPid,
      running,
      warnings,
      address: this.addresses.statusOf(group.spec.name),
    });
  }

  #ramOf(group: Group): ReplicaRam {
    const known = this.#ram.get(group);
    if (known !== undefined) return known;
    const ram = new ReplicaRam();
    this.#ram.set(group, ram);
    return ram;
  }

  #groupOf(pid: number): string | undefined {
    const covering = this.groups.find(
      ({ core }) => core.hostPid === pid && !isOver(core.phase.kind),
    );
    return covering?.spec.name;
  }

  #nameOf(facts: ProcessFacts): string {
    return freeName(facts.name, (name) => {
      const group = this.#groups.get(name);
      return group === undefined || isOver(group.core.phase.kind);
    });
  }

  #generationOf(name: string, previous: Group | undefined): number {
    return freeGeneration(this.#options.config.keepersDir, name, previous?.core.generation ?? 0);
  }

  /** The group of that name that is over and gives way, if any. Throws ERR_GROUP_EXISTS. */
  #replaceable(caller: Caller, name: string): Group | undefined {
    if (!this.#groups.has(name)) return undefined;
    const group = this.#allowed(caller, name);
    if (isOver(group.core.phase.kind)) return group;
    throw new ReplicationError('ERR_GROUP_EXISTS', `there is a group ${name} already`, {
      advice: 'give another --name, or unprotect that one first',
    });
  }

  #forget(group: Group): void {
    const { name } = group.spec;
    if (this.#groups.get(name) === group) {
      this.#groups.delete(name);
      this.#untold.delete(name);
    }
    this.#startTimes.delete(group);
    this.#options.host.persist();
  }
}

function ownerOf({ pid, uid, gid }: Caller): Owner {
  return { uid, gid, groups: supplementaryGroups(pid, uid) ?? [] };
}
