/** Brings groups back from checkpoints, one of each origin at a time. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import type { RestoreReport, RestoreRequest } from '../api/schema.js';
import { ReplicationError } from '../base/errors.js';
import type { GroupHost, GroupSpec, Owner } from '../capture/group-spec.js';
import { Group } from '../capture/group.js';
import { newGroup, type GroupCore } from '../capture/group-state.js';
import type { NativeAddon } from '../native/binding.js';
import type { NativeManifest } from '../native/checkpoint.js';
import type { DaemonConfig } from './config.js';
import { defaultOutput } from './new-spec.js';
import { makeOutputFile } from './outsiders.js';
import { readProcess } from './process-facts.js';
import { parseKeeperName } from './recover.js';
import {
  checkGone,
  findRestorable,
  originsOf,
  restoredSpec,
  runCheckpoint,
  type Found,
} from './restore.js';

export interface RestorerOptions {
  readonly native: NativeAddon;
  readonly host: GroupHost;
  readonly config: DaemonConfig;
  /** Groups whose process runs, protected or not. */
  running(): readonly Group[];
  add(group: Group, startTime: string): void;
}

type Restored = Omit<RestoreReport, 'group'> & { readonly group: Group };

export class Restorer {
  readonly #options: RestorerOptions;
  readonly #busy = new Set<string>();

  constructor(options: RestorerOptions) {
    this.#options = options;
  }

  /** `generationOf` throws when there is such a group already. */
  async restore(
    caller: Owner,
    request: RestoreRequest,
    generationOf: (name: string) => number,
  ): Promise<Restored> {
    const { native, host } = this.#options;
    const beganMs = host.clock.nowMs();
    const found = await findRestorable(native, host, caller, request);
    const { id, epoch, takenMs } = found.manifest;
    const taken = new Date(takenMs).toISOString();
    const keys = [...originsOf(found.manifest), `name ${request.name ?? request.from}`];
    if (keys.some((key) => this.#busy.has(key))) {
      throw new ReplicationError('ERR_STATE', `${request.from} is being restored already`);
    }
    keys.forEach((key) => this.#busy.add(key));
    try {
      const group = await this.#run(caller, request, found, generationOf);
      return { group, id, epoch, taken, ms: Math.round(host.clock.nowMs() - beganMs) };
    } finally {
      keys.forEach((key) => this.#busy.delete(key));
    }
  }

  async #run(
    caller: Owner,
    request: RestoreRequest,
    found: Found,
    generationOf: (name: string) => number,
  ): Promise<Group> {
    const { native, host, config } = this.#options;
    await this.#checkNotHere(found.manifest);
    const spec = restoredSpec(found.manifest, request, caller, config.logDir);
    const { name, stdio, owner } = spec;
    const generation = generationOf(name);
    if (stdio !== null && stdio === defaultOutput(config.logDir, name)) {
      await makeOutputFile(config.logDir, name, owner);
    }
    const report = await runCheckpoint(native, host, found, { spec, generation }, request);
    const { hostPid, epoch, pid } = report;
    const core: GroupCore = {
      ...newGroup(hostPid, generation, spec.retries),
      phase: { kind: 'promoted', lazyPages: 0 },
      epoch,
      promotion: report,
      resumed: true,
    };
    const startTime = readProcess(hostPid)?.startTime ?? '';
    const group = new Group(spec, host, core, startTime);
    this.#options.add(group, startTime);
    host.persist();
    host.note(name, 'restored', `from checkpoint ${found.manifest.id}, epoch ${epoch}`);
    const reason = `restored from checkpoint ${found.manifest.id}`;
    host.announce(spec, { pid, hostPid, generation, epoch, exact: false, reason });
    group.resumePromoted(report.keeperSocket);
    return group;
  }

  async #checkNotHere(manifest: NativeManifest): Promise<void> {
    const origins = originsOf(manifest);
    const { host, config } = this.#options;
    const same = ({ storeId, origin }: GroupSpec): boolean =>
      origins.includes(storeId) || (origin !== undefined && origins.includes(origin));
    const here = this.#options.running().find(({ spec }) => same(spec));
    if (here !== undefined) {
      const { name } = here.spec;
      throw new ReplicationError('ERR_GROUP_EXISTS', `it runs here as group ${name}`, {
        advice: `a checkpoint is for when it is gone: replpage status ${name}`,
      });
    }
    const files = readdirSync(config.keepersDir);
    const mine = files.filter((file) => parseKeeperName(file)?.name === manifest.name);
    const sockets = mine.map((file) => join(config.keepersDir, file));
    await checkGone(manifest, sockets, (socket) => host.askKeeper(socket));
  }
}
