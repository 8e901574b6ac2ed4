/**
 * Who is in the cluster and who can be reached, as a pure machine: `step(state, event)` gives the
 * next state and what to do. membership.ts carries the effects out; test/sim has a network for it.
 *
 * Each node holds one connection with each other node. Both may dial; where two cross, both ends keep
 * the one dialled by the node with the smaller id. Once a second each side sends a heartbeat, with
 * the digest of its list of nodes: who hears another digest sends its list.
 *
 * Nothing here decides about groups: that a node cannot be reached is only shown.
 */
import { assertNever } from '../base/assert.js';
import type { Hello, Member, NodeFacts, PeerMessage, Refusal } from '../format/peer-messages.js';
import { digestOf, liveMembers, memberById, mergeMembers, type MemberList } from './member-list.js';

export const timings = {
  heartbeatMs: 1000,
  /** Without a word for so long, a node is shown as unreachable, */
  unreachableMs: 3500,
  /** and the connection is given up. */
  silenceMs: 8000,
  /** The node with the greater id lets the other one dial first. */
  graceMs: 1500,
  dialBackoffMs: { first: 500, max: 10_000, refused: 30_000 },
  /** Between whole lists on one connection: what changed is on its way already. */
  resendMs: 3000,
  /** A connection is replaced when so much of the time to its certificates' end has passed, */
  replaceAtShare: 0.8,
  /** but not within this. */
  replaceMinMs: 1000,
  /** A link that was replaced is closed after this at the latest. */
  retireMs: 5000,
} as const;

/** A connection, numbered by the shell. */
export interface Link {
  readonly id: number;
  readonly dialled: 'here' | 'there';
  /** Of the other daemon: another run means that a connection to the one before is dead. */
  readonly run: string;
  readonly openedMs: number;
  /** When the sooner of the two certificates ends, on the monotonic clock. */
  readonly expiresMs: number;
  readonly heartbeatDueMs: number;
  readonly sequence: number;
  /** When `sequence` went out, and the one before it: an echo may just miss the newer. */
  readonly sentMs: number;
  readonly sentBeforeMs: number;
  readonly heard: { readonly sequence: number; readonly atMs: number } | undefined;
  readonly listSentMs: number;
  /**
   * Links that this one takes the place of. They stand until something is heard on this one, which
   * shows that the other side has it too: so neither side is without a link for a moment.
   */
  readonly replaces: readonly number[];
}

export interface Peer {
  readonly link: Link | undefined;
  readonly dialling: boolean;
  readonly dialDueMs: number;
  readonly failures: number;
  readonly heardMs: number | undefined;
  readonly roundTripUs: number | undefined;
  readonly facts: NodeFacts | undefined;
  /** Why there is no connection. */
  readonly trouble: string | undefined;
}

export interface MembershipState {
  readonly self: string;
  readonly members: MemberList;
  readonly digest: string;
  readonly facts: NodeFacts;
  readonly peers: ReadonlyMap<string, Peer>;
  readonly nowMs: number;
}

/** All times are of one monotonic clock. */
export type MembershipEvent =
  | { readonly type: 'tick'; readonly nowMs: number }
  | {
      readonly type: 'linked';
      readonly nowMs: number;
      readonly link: number;
      readonly dialled: 'here' | 'there';
      readonly hello: Hello;
      readonly expiresMs: number;
    }
  | {
      readonly type: 'dialFailed';
      readonly nowMs: number;
      readonly member: string;
      readonly why: string;
      /** The other side, or we, do not want it: trying again soon is of no use. */
      readonly refused: boolean;
    }
  | {
      readonly type: 'unlinked';
      readonly nowMs: number;
      readonly link: number;
      readonly why: string;
    }
  | {
      readonly type: 'received';
      readonly nowMs: number;
      readonly link: number;
      readonly message: PeerMessage;
    }
  | { readonly type: 'facts'; readonly facts: NodeFacts }
  /** Records that this node makes: one that joins, one that is removed, its own. */
  | { readonly type: 'changed'; readonly members: MemberList };

export type MembershipEffect =
  | { readonly type: 'dial'; readonly member: Member }
  | { readonly type: 'send'; readonly link: number; readonly message: PeerMessage }
  | { readonly type: 'close'; readonly link: number; readonly refusal: Refusal | undefined }
  | { readonly type: 'persist' }
  | { readonly type: 'note'; readonly node: string; readonly what: string; readonly why: string };

export interface Step {
  readonly state: MembershipState;
  readonly effects: readonly MembershipEffect[];
}

const newPeer: Peer = {
  ...{ link: undefined, dialling: false, dialDueMs: 0, failures: 0, heardMs: undefined },
  ...{ roundTripUs: undefined, facts: undefined, trouble: undefined },
};

export function newMembership(
  self: string,
  members: MemberList,
  facts: NodeFacts,
  nowMs: number,
): MembershipState {
  const state = { self, members, digest: digestOf(members), facts, peers: new Map(), nowMs };
  return withPeersOf(state);
}

export function step(state: MembershipState, event: MembershipEvent): Step {
  const now = 'nowMs' in event ? { ...state, nowMs: event.nowMs } : state;
  switch (event.type) {
    case 'tick':
      return tick(now);
    case 'linked':
      return linked(now, event);
    case 'dialFailed':
      return dialFailed(now, event.member, event.why, event.refused);
    case 'unlinked':
      return unlinked(now, event.link, event.why);
    case 'received':
      return received(now, event.link, event.message);
    case 'facts':
      return factsChanged(now, event.facts);
    case 'changed':
      return listChanged(now, event.members, undefined);
    default:
      return assertNever(event);
  }
}

/** Whether the node itself has been removed. */
export const isRemoved = (state: MembershipState): boolean =>
  memberById(state.members, state.self)?.removed === true;

export type Reach = 'self' | 'up' | 'unreachable' | 'removed';

export function reachOf(state: MembershipState, id: string): Reach {
  if (memberById(state.members, id)?.removed !== false) return 'removed';
  if (id === state.self) return 'self';
  const peer = state.peers.get(id);
  if (peer?.link === undefined || peer.heardMs === undefined) return 'unreachable';
  return state.nowMs - peer.heardMs <= timings.unreachableMs ? 'up' : 'unreachable';
}

function withPeer(state: MembershipState, id: string, changes: Partial<Peer>): MembershipState {
  const peers = new Map(state.peers);
  peers.set(id, { ...(peers.get(id) ?? newPeer), ...changes });
  return { ...state, peers };
}

/** One entry for each live member but ourselves, and for who is linked and not in the list yet. */
function withPeersOf(state: MembershipState): MembershipState {
  const peers = new Map<string, Peer>();
  if (!isRemoved(state)) {
    for (const [id, peer] of state.peers) {
      if (memberById(state.members, id) === undefined) peers.set(id, peer);
    }
    for (const { id } of liveMembers(state.members)) {
      if (id === state.self) continue;
      const dialDueMs = state.self < id ? state.nowMs : state.nowMs + timings.graceMs;
      const known = state.peers.get(id) ?? { ...newPeer, dialDueMs };
      peers.set(id, Number.isFinite(known.dialDueMs) ? known : { ...known, dialDueMs });
    }
  }
  return { ...state, peers };
}

function ownerOf(state: MembershipState, link: number): [string, Peer, Link] | undefined {
  for (const [id, peer] of state.peers) {
    if (peer.link?.id === link) return [id, peer, peer.link];
  }
  return undefined;
}

/** All of a tick is one pass, with one copy of the table at most. */
function tick(state: MembershipState): Step {
  const effects: MembershipEffect[] = [];
  const peers = new Map(state.peers);
  for (const [id, peer] of peers) {
    const next = tickOne(state, id, peer, effects);
    if (next !== peer) peers.set(id, next);
  }
  return { state: { ...state, peers }, effects };
}

function tickOne(
  state: MembershipState,
  id: string,
  peer: Peer,
  effects: MembershipEffect[],
): Peer {
  const { nowMs } = state;
  const { link } = peer;
  if (link === undefined) return dialWhenDue(state, id, peer, effects);
  if (nowMs >= link.expiresMs) {
    const why = 'a certificate has expired';
    retired(peer, link, effects);
    effects.push(close(link.id, { code: 'certificate', why }), noted(id, 'connection closed', why));
    return lost(state, id, peer, why);
  }
  if (nowMs - (peer.heardMs ?? link.openedMs) > timings.silenceMs) {
    const why = `nothing was heard for ${timings.silenceMs / 1000} s`;
    retired(peer, link, effects);
    effects.push(close(link.id), noted(id, 'connection lost', why));
    return lost(state, id, peer, why);
  }
  const alone = nowMs - link.openedMs > timings.retireMs ? retired(peer, link, effects) : peer;
  const current = alone.link ?? link;
  const beating = nowMs < link.heartbeatDueMs ? alone : beat(state, alone, current, effects);
  return worn(link, nowMs) ? dialWhenDue(state, id, beating, effects) : beating;
}

function retired(peer: Peer, link: Link, effects: MembershipEffect[]): Peer {
  if (link.replaces.length === 0) return peer;
  effects.push(...link.replaces.map((id) => close(id)));
  return { ...peer, link: { ...link, replaces: [] } };
}

/** Near the end of its certificates a connection is replaced by one with newer ones. */
function worn({ dialled, openedMs, expiresMs }: Link, nowMs: number): boolean {
  const age = nowMs - openedMs;
  const share = timings.replaceAtShare * (expiresMs - openedMs);
  return dialled === 'here' && age > Math.max(share, timings.replaceMinMs);
}

function dialWhenDue(
  { members, nowMs }: MembershipState,
  id: string,
  peer: Peer,
  effects: MembershipEffect[],
): Peer {
  const member = memberById(members, id);
  if (peer.dialling || nowMs < peer.dialDueMs || member === undefined) return peer;
  effects.push({ type: 'dial', member });
  return { ...peer, dialling: true };
}

function beat(
  { nowMs, digest }: MembershipState,
  peer: Peer,
  link: Link,
  effects: MembershipEffect[],
): Peer {
  const sequence = link.sequence + 1;
  const echo = link.heard?.sequence ?? 0;
  const heldUs = link.heard === undefined ? 0 : Math.round((nowMs - link.heard.atMs) * 1000);
  const body = { sequence, echo, heldUs, digest };
  effects.push(send(link.id, { kind: 'heartbeat', body }));
  // From the last one's due time: a late tick does not slow the rhythm.
  const due = Math.max(link.heartbeatDueMs + timings.heartbeatMs, nowMs);
  const sent = { sequence, sentMs: nowMs, sentBeforeMs: link.sentMs, heartbeatDueMs: due };
  return { ...peer, link: { ...link, ...sent } };
}

/** The node with the smaller id dials at once, the other one gives it a moment. */
function lost(state: MembershipState, id: string, peer: Peer, trouble: string): Peer {
  const grace = state.self < id ? 0 : timings.graceMs;
  const dialDueMs = Math.max(peer.dialDueMs, state.nowMs + grace);
  return { ...peer, link: undefined, dialDueMs, trouble, roundTripUs: undefined };
}

type Linked = Extract<MembershipEvent, { type: 'linked' }>;

function linked(state: MembershipState, event: Linked): Step {
  const { hello, dialled, nowMs } = event;
  const member = memberById(state.members, hello.id);
  if (member?.removed === true || isRemoved(state)) {
    const why = `node ${hello.name} was removed from the cluster`;
    return { state, effects: [close(event.link, { code: 'removed', why })] };
  }
  // One that is not in the list has a certificate of our CA: its record is on its way.
  const peer = state.peers.get(hello.id) ?? newPeer;
  const settled = { dialling: dialled === 'here' ? false : peer.dialling };
  const standing = peer.link;
  if (standing !== undefined && !takesOver(state.self, hello.id, standing, event)) {
    const next = withPeer(state, hello.id, settled);
    return { state: next, effects: [close(event.link)] };
  }
  const effects: MembershipEffect[] = [];
  if (standing === undefined) effects.push(noted(hello.id, 'connected', `dialled from ${dialled}`));
  const link: Link = {
    ...{ id: event.link, dialled, run: hello.run, openedMs: nowMs, expiresMs: event.expiresMs },
    ...{ heartbeatDueMs: nowMs, sequence: 0, sentMs: nowMs, sentBeforeMs: nowMs },
    ...{ heard: undefined, listSentMs: Number.NEGATIVE_INFINITY },
    replaces: standing === undefined ? [] : [standing.id, ...standing.replaces],
  };
  effects.push(send(link.id, { kind: 'facts', body: state.facts }));
  const beating = beat(state, { ...peer, ...settled, link }, link, effects);
  // Of a node whose record has not come yet nobody knows where to dial it.
  const dialDueMs = member === undefined ? Number.POSITIVE_INFINITY : nowMs;
  const next = { ...beating, failures: 0, heardMs: nowMs, dialDueMs, trouble: undefined };
  return { state: withPeer(state, hello.id, next), effects };
}

/** Both ends must come to the same answer, whichever connection each of them saw first. */
function takesOver(self: string, other: string, standing: Link, fresh: Linked): boolean {
  if (standing.run !== fresh.hello.run || standing.dialled === fresh.dialled) return true;
  return fresh.dialled === (self < other ? 'here' : 'there');
}

function dialFailed(state: MembershipState, id: string, why: string, refused: boolean): Step {
  const peer = state.peers.get(id);
  if (peer === undefined) return { state, effects: [] };
  const { first, max, refused: late } = timings.dialBackoffMs;
  const backoffMs = refused ? late : Math.min(max, first * 2 ** Math.min(peer.failures, 10));
  const dialDueMs = state.nowMs + backoffMs;
  const failures = peer.failures + 1;
  const trouble = peer.link === undefined ? why : peer.trouble;
  const news = peer.link === undefined && peer.trouble !== why;
  return {
    state: withPeer(state, id, { dialling: false, dialDueMs, failures, trouble }),
    effects: news ? [noted(id, refused ? 'refused' : 'not reached', why)] : [],
  };
}

function unlinked(state: MembershipState, link: number, why: string): Step {
  const owner = ownerOf(state, link);
  if (owner === undefined) return { state, effects: [] };
  const [id, peer, { replaces }] = owner;
  const next = withPeer(state, id, lost(state, id, peer, why));
  const effects = [noted(id, 'connection lost', why), ...replaces.map((old) => close(old))];
  return { state: next, effects };
}

function received(state: MembershipState, linkId: number, message: PeerMessage): Step {
  const owner = ownerOf(state, linkId);
  if (owner === undefined) return { state, effects: [] };
  const [id, peer, link] = owner;
  if (link.replaces.length > 0) {
    const effects: MembershipEffect[] = [];
    const next = received(withPeer(state, id, retired(peer, link, effects)), linkId, message);
    return { state: next.state, effects: [...effects, ...next.effects] };
  }
  const heardMs = state.nowMs;
  switch (message.kind) {
    case 'heartbeat': {
      const { sequence, echo, heldUs, digest } = message.body;
      const sentMs = sentAt(link, echo);
      const roundTripUs =
        sentMs === undefined
          ? peer.roundTripUs
          : Math.max(0, Math.round((heardMs - sentMs) * 1000 - heldUs));
      const heard = { sequence, atMs: heardMs };
      const next = { ...peer, heardMs, roundTripUs, link: { ...link, heard } };
      return compareLists(state, id, next, digest);
    }
    case 'facts':
      return { state: withPeer(state, id, { heardMs, facts: message.body }), effects: [] };
    case 'members':
      return listChanged(withPeer(state, id, { heardMs }), message.body.members, linkId);
    default:
      // The rest is for others than this machine.
      return { state: withPeer(state, id, { heardMs }), effects: [] };
  }
}

function sentAt(link: Link, echo: number): number | undefined {
  if (echo === 0) return undefined;
  if (echo === link.sequence) return link.sentMs;
  return echo === link.sequence - 1 ? link.sentBeforeMs : undefined;
}

function compareLists(state: MembershipState, id: string, peer: Peer, digest: string): Step {
  const { link } = peer;
  const due = link !== undefined && state.nowMs - link.listSentMs > timings.resendMs;
  if (digest === state.digest || !due) return { state: withPeer(state, id, peer), effects: [] };
  const sent = { ...peer, link: { ...link, listSentMs: state.nowMs } };
  const body = { members: state.members };
  return {
    state: withPeer(state, id, sent),
    effects: [send(link.id, { kind: 'members', body })],
  };
}

function factsChanged(state: MembershipState, facts: NodeFacts): Step {
  const links = linksOf(state);
  return {
    state: { ...state, facts },
    effects: links.map(({ id }) => send(id, { kind: 'facts', body: facts })),
  };
}

const linksOf = ({ peers }: MembershipState): readonly Link[] =>
  [...peers.values()].map(({ link }) => link).filter((link) => link !== undefined);

/** What is new goes on to everybody but who told us. */
function listChanged(state: MembershipState, heard: MemberList, from: number | undefined): Step {
  const { list, changed } = mergeMembers(state.members, heard);
  if (changed.length === 0) return { state, effects: [] };
  const next = withPeersOf({ ...state, members: list, digest: digestOf(list) });
  const body = { members: changed };
  const effects: MembershipEffect[] = [{ type: 'persist' }];
  for (const { id } of linksOf(state)) {
    if (id !== from) effects.push(send(id, { kind: 'members', body }));
  }
  for (const [id, { link }] of state.peers) {
    if (link === undefined || next.peers.has(id)) continue;
    const name = memberById(list, isRemoved(next) ? state.self : id)?.name ?? id;
    const why = `node ${name} was removed from the cluster`;
    effects.push(...link.replaces.map((old) => close(old)));
    effects.push(close(link.id, { code: 'removed', why }));
  }
  for (const member of changed) {
    const before = memberById(state.members, member.id);
    effects.push(noted(member.id, changeOf(before, member), `address ${member.address}`));
  }
  return { state: next, effects };
}

function changeOf(before: Member | undefined, after: Member): string {
  if (after.removed) return 'removed';
  return before === undefined ? 'joined' : 'changed';
}

const send = (link: number, message: PeerMessage): MembershipEffect => ({
  ...{ type: 'send', link, message },
});
const close = (link: number, refusal?: Refusal): MembershipEffect => ({
  ...{ type: 'close', link, refusal },
});
const noted = (node: string, what: string, why: string): MembershipEffect => ({
  ...{ type: 'note', node, what, why },
});
