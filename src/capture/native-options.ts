/** A group's options as its native side takes them. */
import type { NativeGroupOptions, NativeHome } from '../native/group.js';
import type { GroupHost, GroupSpec } from './group-spec.js';
import { crashDelayMs, isFirstStart, retriesLeft, type GroupCore } from './group-state.js';
import { pagingOptions } from './paging-turns.js';

export function nativeOptions(
  spec: GroupSpec,
  core: GroupCore,
  { limits, paths, store }: Pick<GroupHost, 'limits' | 'paths' | 'store'>,
  { startTime, homes }: { readonly startTime: string; readonly homes: readonly NativeHome[] },
): NativeGroupOptions {
  return {
    name: spec.name,
    pid: core.hostPid,
    startTime,
    generation: core.generation,
    ...paths,
    attach: spec.attach,
    onExit: spec.onExit,
    files: spec.files,
    vip: spec.vip ?? null,
    retriesLeft: retriesLeft(core),
    crashDelayMs: crashDelayMs(core.crashes),
    ...limits,
    freezeDeadlineUs: Math.min(limits.freezeDeadlineUs, spec.maxPauseMs * 1000),
    maxPauseUs: spec.maxPauseMs * 1000,
    stdio: spec.stdio,
    uid: spec.owner.uid,
    gid: spec.owner.gid,
    groups: spec.owner.groups,
    tracker: spec.tracker,
    paging: pagingOptions(spec, store, isFirstStart(core)),
    homes,
    recordsOuts: true,
  };
}
