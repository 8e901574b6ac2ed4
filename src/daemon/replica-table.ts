/**
 * The node's replica table: which groups exist, and what a caller may do with them. This is what
 * stands behind the API; it checks rights, then hands over to the group.
 */
import { readdirSync } from 'node:fs';
import type { Caller, DaemonControl } from '../api/server.js';
import type {
  EventRecord,
  GroupBrief,
  GroupStatus,
  KernelReport,
  ProtectReport,
  ProtectRequest,
  StatusReport,
} from '../api/schema.js';
import { ReplicationError } from '../base/errors.js';
import { Group } from '../capture/group.js';
import type { GroupHost, GroupSpec } from '../capture/group-spec.js';
import { isFirstStart, isOver, newGroup } from '../capture/group-state.js';
import type { NativeAddon } from '../native/binding.js';
import type { DaemonConfig } from './config.js';
import type { EventRing } from './event-ring.js';
import { groupBrief, groupStatus } from './group-status.js';
import { makeOutputFile } from './outsiders.js';
import { readProcess, supplementaryGroups, type ProcessFacts } from './process-facts.js';
import { parseKeeperName } from './recover.js';
import type { GroupRecord } from './state-file.js';
import { checkTarget, warningsFor } from './target-check.js';

export interface TableOptions {
  readonly config: DaemonConfig;
  readonly node: string;
  readonly version: string;
  readonly native: NativeAddon;
  readonly events: EventRing;
  readonly host: GroupHost;
  /** Resolves when what was given to `host.persist` so far is in the state file, or cannot be. */
  persisted(): Promise<void>;
  /** About the daemon itself, for whoever relies on it. */
  warnings(): readonly string[];
}

const protectDefaults = {
  intervalMs: 100,
  overhead: 0.05,
  maxPauseMs: 50,
  attach: 'always',
  onExit: 'end',
  files: 'refuse',
  retries: 3,
  tracker: 'auto',
} as const;

export class ReplicaTable implements DaemonControl {
  readonly #options: TableOptions;
  readonly #groups = new Map<string, Group>();
  /** Of each group's process, read once: its pid may be another's later. */
  readonly #startTimes = new Map<Group, { readonly hostPid: number; readonly startTime: string }>();
  readonly #startedMs: number;

  constructor(options: TableOptions) {
    this.#options = options;
    this.#startedMs = options.host.clock.nowMs();
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
      return { spec, core, startTime: this.#startTimeOf(group) };
    });
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
    const { node, version, host } = this.#options;
    const uptimeMs = Math.round(host.clock.nowMs() - this.#startedMs);
    return {
      node,
      daemon: { pid: process.pid, uptimeMs, version, warnings: this.#options.warnings() },
      groups: this.groups.map((group) => this.#show(caller, group)),
    };
  }

  group(caller: Caller, name: string): GroupStatus {
    return this.#statusOf(this.#allowed(caller, name));
  }

  async protect(
    caller: Caller,
    request: ProtectRequest,
    watch: { onProgress(bytes: number, bytesTotal: number): void; signal: AbortSignal },
  ): Promise<ProtectReport> {
    const { native, host, config } = this.#options;
    const facts = checkTarget(
      {
        mayTrace: (who, pid) => native.mayTrace(who, pid),
        keeperPath: host.paths.keeperPath,
        daemonPid: process.pid,
        groupOf: (pid) => this.#groupOf(pid),
      },
      caller,
      request.pid,
    );
    const name = this.#freeName(request.name, facts);
    const previous = this.#replaceable(caller, name);
    if (previous === undefined && this.#groups.size >= config.groupsMax) {
      throw new ReplicationError('ERR_LIMIT', `there are ${config.groupsMax} groups already`, {
        advice: 'unprotect groups that have ended',
      });
    }
    const generation = this.#freeGeneration(name, previous);
    const spec = newSpec(name, caller, request, config);
    const core = newGroup(facts.pid, generation, spec.retries);
    const group = new Group(spec, host, core, facts.startTime);
    this.add(group, facts.startTime);
    return this.#firstEpoch(group, watch);
  }

  async #firstEpoch(
    group: Group,
    watch: { onProgress(bytes: number, bytesTotal: number): void; signal: AbortSignal },
  ): Promise<ProtectReport> {
    const { name, stdio, owner } = group.spec;
    const giveUp = (): void => void group.unprotect();
    watch.signal.addEventListener('abort', giveUp);
    try {
      const { logDir } = this.#options.config;
      if (stdio !== null && stdio === defaultOutput(logDir, name)) {
        await makeOutputFile(logDir, name, owner);
      }
      const report = await group.protect((bytes, total) => watch.onProgress(bytes, total));
      // Whoever was told that a process is protected relies on it from then on.
      await this.#options.persisted();
      const { copiedBytes, copyUs } = report;
      const status = this.#statusOf(group);
      const warnings = [...status.warnings, ...this.#options.warnings()];
      return { group: status, copiedBytes, copyUs, warnings };
    } catch (error) {
      this.#forget(group);
      throw error;
    } finally {
      watch.signal.removeEventListener('abort', giveUp);
    }
  }

  async promote(caller: Caller, name: string): Promise<GroupStatus> {
    const group = this.#allowed(caller, name);
    await group.promote();
    return this.#statusOf(group);
  }

  async unprotect(caller: Caller, name: string): Promise<GroupStatus> {
    const group = this.#allowed(caller, name);
    await group.unprotect();
    this.#forget(group);
    await this.#options.persisted();
    return this.#statusOf(group);
  }

  async detach(caller: Caller, name: string): Promise<GroupStatus> {
    const group = this.#allowed(caller, name);
    const { kind } = group.core.phase;
    if (isOver(kind))
      throw new ReplicationError('ERR_STATE', `cannot detach ${name}: it is ${kind}`);
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

  /** The kernel's own rule on what runs; of what has ended, whose it was. */
  #mayAct(caller: Caller, group: Group): boolean {
    if (caller.uid === 0) return true;
    const { hostPid } = group.core;
    if (this.#options.host.processAlive(hostPid)) {
      return this.#options.native.mayTrace(caller, hostPid).allowed;
    }
    return caller.uid === group.spec.owner.uid;
  }

  #maySee(caller: Caller, event: EventRecord): boolean {
    const group = this.#groups.get(event.group);
    return group === undefined ? caller.uid === 0 : this.#mayAct(caller, group);
  }

  #allowed(caller: Caller, name: string): Group {
    const group = this.#groups.get(name);
    if (group === undefined) {
      throw new ReplicationError('ERR_NO_GROUP', `there is no group ${name}`, {
        advice: 'replpage status shows those there are',
      });
    }
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
    const facts = isOver(phase.kind) ? undefined : readProcess(hostPid);
    const warnings = facts === undefined ? [] : warningsFor(facts);
    const { keepersDir } = config;
    return groupStatus(group.snapshot(), { node, keepersDir, ownPid: facts?.ownPid, warnings });
  }

  #groupOf(pid: number): string | undefined {
    const covering = this.groups.find(
      ({ core }) => core.hostPid === pid && !isOver(core.phase.kind),
    );
    return covering?.spec.name;
  }

  #freeName(asked: string | undefined, facts: ProcessFacts): string {
    if (asked !== undefined) return asked;
    const plain = facts.name.replace(/[^A-Za-z0-9_.-]/g, '-').replace(/^[^A-Za-z0-9]+/, '');
    const base = plain === '' ? 'process' : plain.slice(0, 40);
    const isFree = (name: string): boolean => {
      const group = this.#groups.get(name);
      return group === undefined || isOver(group.core.phase.kind);
    };
    for (let i = 1; ; i++) {
      const name = i === 1 ? base : `${base}-${i}`;
      if (isFree(name)) return name;
    }
  }

  /**
   * A keeper may still run what an earlier group of that name has promoted: its socket and its
   * control group carry a generation that is never given again.
   */
  #freeGeneration(name: string, previous: Group | undefined): number {
    const taken = readdirSync(this.#options.config.keepersDir).map(parseKeeperName);
    const ofName = taken.filter((keeper) => keeper?.name === name);
    const used = ofName.map((keeper) => keeper?.generation ?? 0);
    return Math.max(previous?.core.generation ?? 0, ...used) + 1;
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
    if (this.#groups.get(group.spec.name) === group) this.#groups.delete(group.spec.name);
    this.#startTimes.delete(group);
    this.#options.host.persist();
  }
}

const defaultOutput = (logDir: string, name: string): string => `${logDir}/${name}.log`;

function newSpec(
  name: string,
  caller: Caller,
  request: ProtectRequest,
  config: DaemonConfig,
): GroupSpec {
  const { uid, gid } = caller;
  const groups = supplementaryGroups(caller.pid, uid) ?? [];
  return {
    name,
    intervalMs: request.intervalMs ?? protectDefaults.intervalMs,
    overhead: request.overhead ?? protectDefaults.overhead,
    maxPauseMs: request.maxPauseMs ?? protectDefaults.maxPauseMs,
    attach: request.attach ?? protectDefaults.attach,
    onExit: request.onExit ?? protectDefaults.onExit,
    files: request.files ?? protectDefaults.files,
    retries: request.retries ?? protectDefaults.retries,
    tracker: request.tracker ?? protectDefaults.tracker,
    stdio: request.stdio === undefined ? defaultOutput(config.logDir, name) : request.stdio,
    pidfile: request.pidfile,
    onPromote: request.onPromote,
    owner: { uid, gid, groups },
  };
}
