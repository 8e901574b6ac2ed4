/**
 * The list of nodes, which every node holds. Two lists are merged record by record: a removal wins,
 * then the higher revision. The order of merges does not matter, nor how often one is made, so nodes
 * that hear of each other in any way end with the same list.
 */
import { crc32c } from '../format/crc32c.js';
import type { Member } from '../format/peer-messages.js';

/** Sorted by id. */
export type MemberList = readonly Member[];

/** Of equal revisions, which only a damaged node makes, the same one on every node. */
function newer(one: Member, other: Member): Member {
  if (one.removed !== other.removed) return one.removed ? one : other;
  if (one.revision !== other.revision) return one.revision > other.revision ? one : other;
  return JSON.stringify(plain(one)) >= JSON.stringify(plain(other)) ? one : other;
}

const plain = ({ id, name, address, zone, signs, revision, removed }: Member): Member => ({
  ...{ id, name, address, zone, signs, revision, removed },
});

const same = (one: Member, other: Member): boolean =>
  JSON.stringify(plain(one)) === JSON.stringify(plain(other));

/** `changed`: the records that are not as they were in `list`. */
export function mergeMembers(
  list: MemberList,
  heard: MemberList,
): { readonly list: MemberList; readonly changed: MemberList } {
  const byId = new Map(list.map((member) => [member.id, member]));
  const changed: Member[] = [];
  for (const member of heard) {
    const known = byId.get(member.id);
    const winner = known === undefined ? member : newer(known, member);
    if (known !== undefined && same(known, winner)) continue;
    byId.set(member.id, winner);
    changed.push(winner);
  }
  if (changed.length === 0) return { list, changed };
  const merged = [...byId.values()].sort((a, b) => (a.id < b.id ? -1 : 1));
  return { list: merged, changed };
}

/** Lists with the same digest are the same, but for one chance in four thousand million. */
export function digestOf(list: MemberList): string {
  const revisions = list.reduce((sum, { revision }) => sum + revision, 0);
  const bytes = Buffer.from(JSON.stringify(list.map(plain)));
  return `${list.length}-${revisions}-${crc32c(bytes).toString(16)}`;
}

export const memberById = (list: MemberList, id: string): Member | undefined =>
  list.find((member) => member.id === id);

export const liveMembers = (list: MemberList): MemberList => list.filter(({ removed }) => !removed);

/** By name, or by id where a name is not enough. */
export function membersCalled(list: MemberList, nameOrId: string): MemberList {
  return liveMembers(list).filter(({ id, name }) => name === nameOrId || id === nameOrId);
}
