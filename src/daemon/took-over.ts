/** A group that runs here since its replica was promoted: what it was elsewhere, it is here. */
import { Group } from '../capture/group.js';
import { homesOf, type GroupHost, type GroupSpec } from '../capture/group-spec.js';
import { newGroup, type GroupCore } from '../capture/group-state.js';
import type { PromotedStandby } from '../replica/standbys.js';
import { readProcess } from './process-facts.js';

/** Where it came from takes the place of this node, and is the first where this one was none. */
export function homesAfter(
  homes: readonly string[],
  from: string,
  self: string,
): readonly string[] {
  if (homes.includes(self)) return homes.map((home) => (home === self ? from : home));
  return [from, ...homes.filter((home) => homes.length > 1 && home !== from)];
}

/** A replica is to be kept where it came from, as soon as that node is there. */
export function takenOver(
  promoted: PromotedStandby<GroupSpec>,
  host: GroupHost,
  self: string,
): { readonly group: Group; readonly startTime: string } {
  const { standby, pid, hostPid, epoch, promoteUs, ordered, keeperSocket } = promoted;
  const { stdio, node, generation } = standby;
  const to = homesAfter(homesOf(standby.spec), node.name, self).join(',');
  const spec: GroupSpec = { ...standby.spec, stdio, to };
  const lostMs = ordered ? 0 : Math.max(0, host.clock.nowMs() - standby.committedMs);
  const core: GroupCore = {
    ...newGroup(hostPid, generation, spec.retries),
    phase: { kind: 'promoted', lazyPages: 0 },
    epoch,
    promotion: {
      ...{ epoch, pid, hostPid, exact: ordered, lostMs, lazyPages: 0, keeperSocket },
      ...{ decisionToRunUs: promoteUs, deathToRunUs: promoteUs },
    },
    resumed: true,
  };
  const startTime = readProcess(hostPid)?.startTime ?? '';
  return { group: new Group(spec, host, core, startTime), startTime };
}
