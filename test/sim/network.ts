/**
 * A network and a clock for many nodes in one process: membership machines without sockets. A link
 * keeps the order of its messages and nothing else does; all chance comes from a seed.
 */
import type { Member, NodeFacts, PeerMessage } from '../../src/format/peer-messages.js';
import { decodeMessage, encodeMessage } from '../../src/format/peer-messages.js';
import { FrameReader } from '../../src/format/frame.js';
import {
  newMembership,
  step,
  type MembershipEffect,
  type MembershipEvent,
  type MembershipState,
} from '../../src/membership/membership-state.js';
import { memberById, type MemberList } from '../../src/membership/member-list.js';

/** Numbers from 0 to 1, the same for the same seed (mulberry32). */
export function randomOf(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let value = Math.imul(state ^ (state >>> 15), state | 1);
    value ^= value + Math.imul(value ^ (value >>> 7), value | 61);
    return ((value ^ (value >>> 14)) >>> 0) / 4_294_967_296;
  };
}

export const facts: NodeFacts = {
  ...{ version: '0.1.0', kernel: '6.18', memoryBytes: 2 ** 34 },
  ...{ memoryForReplicasBytes: 2 ** 33, groups: 3 },
};

export const memberOf = (index: number): Member => ({
  id: index.toString(16).padStart(16, '0'),
  ...{ name: `n${index}`, address: `10.0.0.${index}:7420`, zone: null, signs: index === 0 },
  ...{ revision: 1, removed: false },
});

interface Wire {
  readonly ends: readonly [string, string];
  /** Message numbers on either end: each node counts its own links. */
  readonly links: readonly [number, number];
  /** When the last message in each direction arrives: no later one arrives sooner. */
  readonly lastMs: [number, number];
  open: boolean;
  /** That end has closed, or its node has gone: nothing arrives there any more. */
  readonly deaf: [boolean, boolean];
}

export interface SimNode {
  readonly id: string;
  state: MembershipState;
  /** As on its disk. */
  disk: MemberList;
  up: boolean;
  run: number;
  readonly wires: Map<number, Wire>;
  nextLink: number;
}

export interface SimOptions {
  readonly count: number;
  readonly seed: number;
  readonly latencyMs?: { readonly min: number; readonly max: number };
  /** Puts every message through its frame, as on a socket. */
  readonly framed?: boolean;
  readonly certificateLifeMs?: number;
}

const dialMs = 20;

interface Due {
  readonly atMs: number;
  readonly order: number;
  readonly run: () => void;
}

const sooner = (one: Due, other: Due): boolean =>
  one.atMs < other.atMs || (one.atMs === other.atMs && one.order < other.order);

/** What is to come, the next first: a binary heap. */
class Agenda {
  readonly #heap: Due[] = [];

  get firstMs(): number {
    return this.#heap[0]?.atMs ?? Number.POSITIVE_INFINITY;
  }

  push(due: Due): void {
    const heap = this.#heap;
    let at = heap.push(due) - 1;
    for (let up = (at - 1) >> 1; at > 0 && sooner(due, heap[up] ?? due); up = (at - 1) >> 1) {
      heap[at] = heap[up] ?? due;
      at = up;
    }
    heap[at] = due;
  }

  pop(): Due {
    const heap = this.#heap;
    const [first] = heap;
    const last = heap.pop();
    if (first === undefined || last === undefined) throw new Error('nothing is due');
    if (heap.length === 0) return first;
    let at = 0;
    for (;;) {
      const [left, right] = [heap[2 * at + 1], heap[2 * at + 2]];
      if (left === undefined) break;
      const rightFirst = right !== undefined && sooner(right, left);
      const child = rightFirst ? right : left;
      if (!sooner(child, last)) break;
      heap[at] = child;
      at = 2 * at + (rightFirst ? 2 : 1);
    }
    heap[at] = last;
    return first;
  }
}

export class SimNetwork {
  nowMs = 0;
  readonly nodes = new Map<string, SimNode>();
  readonly notes: string[] = [];
  readonly random: () => number;
  readonly #options: Required<SimOptions>;
  readonly #due = new Agenda();
  #order = 0;
  /** Pairs of ids, as "a b", between which nothing passes. */
  readonly cut = new Set<string>();
  messages = 0;

  constructor(options: SimOptions) {
    this.#options = {
      ...{ latencyMs: { min: 1, max: 40 }, framed: false, certificateLifeMs: 1e12 },
      ...options,
    };
    this.random = randomOf(options.seed);
    const members = Array.from({ length: options.count }, (_, index) => memberOf(index));
    for (const { id } of members) this.add(id, members);
  }

  add(id: string, disk: MemberList): SimNode {
    const state = newMembership(id, disk, facts, this.nowMs);
    const node = { id, state, disk, up: true, run: 1, wires: new Map(), nextLink: 1 };
    this.nodes.set(id, node);
    this.#tickLater(node, node.run);
    return node;
  }

  node(index: number): SimNode {
    const found = this.nodes.get(memberOf(index).id);
    if (found === undefined) throw new Error(`there is no node ${index}`);
    return found;
  }

  stop(node: SimNode): void {
    node.up = false;
    for (const link of [...node.wires.keys()]) this.#closeWire(node, link, undefined);
  }

  /** With what its disk has, and nothing else. */
  start(node: SimNode): void {
    node.up = true;
    node.run++;
    node.state = newMembership(node.id, node.disk, facts, this.nowMs);
    this.#tickLater(node, node.run);
  }

  /** Messages that are on their way are lost, and so is every byte until `heal`: nobody is told. */
  partition(one: readonly SimNode[], other: readonly SimNode[]): void {
    for (const a of one)
      for (const b of other) this.cut.add(`${a.id} ${b.id}`).add(`${b.id} ${a.id}`);
  }

  heal(): void {
    this.cut.clear();
  }

  event(node: SimNode, event: MembershipEvent): void {
    if (!node.up) return;
    const { state, effects } = step(node.state, event);
    node.state = state;
    for (const effect of effects) this.#carryOut(node, effect);
  }

  run(ms: number): void {
    const until = this.nowMs + ms;
    while (this.#due.firstMs <= until) {
      const next = this.#due.pop();
      this.nowMs = Math.max(this.nowMs, next.atMs);
      next.run();
    }
    this.nowMs = until;
  }

  #later(ms: number, run: () => void): void {
    this.#due.push({ atMs: this.nowMs + ms, order: this.#order++, run });
  }

  #tickLater(node: SimNode, run: number): void {
    this.#later(200 + this.random() * 100, () => {
      if (!node.up || node.run !== run) return;
      this.event(node, { type: 'tick', nowMs: this.nowMs });
      this.#tickLater(node, run);
    });
  }

  #latency(): number {
    const { min, max } = this.#options.latencyMs;
    return min + this.random() * (max - min);
  }

  #carryOut(node: SimNode, effect: MembershipEffect): void {
    if (effect.type === 'dial') this.#dial(node, effect.member);
    if (effect.type === 'send') this.#send(node, effect.link, effect.message);
    if (effect.type === 'close') this.#closeWire(node, effect.link, effect.refusal?.why);
    if (effect.type === 'persist') node.disk = node.state.members;
    if (effect.type === 'note') this.notes.push(`${node.id} ${effect.what} ${effect.why}`);
  }

  #dial(node: SimNode, member: Member): void {
    const run = node.run;
    const fail = (why: string, refused = false): void => {
      if (node.run === run) {
        const event = { type: 'dialFailed', nowMs: this.nowMs, member: member.id } as const;
        this.event(node, { ...event, why, refused });
      }
    };
    this.#later(dialMs + this.#latency(), () => {
      if (!node.up || node.run !== run) return;
      const other = this.nodes.get(member.id);
      if (other?.up !== true) return fail('nothing listens there');
      if (this.cut.has(`${node.id} ${other.id}`)) return fail('it does not answer');
      if (memberById(other.state.members, node.id)?.removed === true) return fail('removed', true);
      const links = [node.nextLink++, other.nextLink++] as const;
      const deaf: [boolean, boolean] = [false, false];
      const ends = [node.id, other.id] as const;
      const wire: Wire = { ends, links, lastMs: [0, 0], open: true, deaf };
      node.wires.set(links[0], wire);
      other.wires.set(links[1], wire);
      this.#link(other, links[1], node, 'there');
      this.#link(node, links[0], other, 'here');
    });
  }

  #link(node: SimNode, link: number, other: SimNode, dialled: 'here' | 'there'): void {
    const { name } = memberOf(Number.parseInt(other.id, 16));
    const run = other.run.toString(16).padStart(16, '0');
    const hello = { cluster: '0'.repeat(16), id: other.id, name, protocol: 1, version: '0', run };
    const expiresMs = this.nowMs + this.#options.certificateLifeMs;
    this.event(node, { type: 'linked', nowMs: this.nowMs, link, dialled, hello, expiresMs });
  }

  #send(node: SimNode, link: number, message: PeerMessage): void {
    const wire = node.wires.get(link);
    if (wire?.open !== true) return;
    const end = wire.ends[0] === node.id && wire.links[0] === link ? 0 : 1;
    const other = this.nodes.get(wire.ends[1 - end] ?? '');
    const otherLink = wire.links[1 - end] ?? 0;
    const arrives = Math.max(this.nowMs + this.#latency(), wire.lastMs[end] ?? 0);
    wire.lastMs[end] = arrives;
    const sent = this.#options.framed ? this.#framed(message) : message;
    this.messages++;
    this.#later(arrives - this.nowMs, () => {
      const lost = wire.deaf[1 - end] || this.cut.has(`${node.id} ${other?.id}`);
      if (other === undefined || lost) return;
      this.event(other, { type: 'received', nowMs: this.nowMs, link: otherLink, message: sent });
    });
  }

  #framed(message: PeerMessage): PeerMessage {
    const [frame] = new FrameReader(2 ** 21).push(encodeMessage(message));
    if (frame === undefined) throw new Error('a frame was not whole');
    return decodeMessage(frame);
  }

  #closeWire(node: SimNode, link: number, why: string | undefined): void {
    const wire = node.wires.get(link);
    node.wires.delete(link);
    if (wire === undefined) return;
    const end = wire.ends[0] === node.id && wire.links[0] === link ? 0 : 1;
    wire.deaf[end] = true;
    if (!wire.open) return;
    wire.open = false;
    const other = this.nodes.get(wire.ends[1 - end] ?? '');
    const otherLink = wire.links[1 - end] ?? 0;
    if (other === undefined) return;
    const run = other.run;
    const arrives = Math.max(this.nowMs + this.#latency(), wire.lastMs[end] ?? 0);
    this.#later(arrives - this.nowMs, () => {
      other.wires.delete(otherLink);
      wire.deaf[1 - end] = true;
      if (other.run !== run || this.cut.has(`${node.id} ${other.id}`)) return;
      const event = { type: 'unlinked', nowMs: this.nowMs, link: otherLink } as const;
      this.event(other, { ...event, why: why ?? 'closed' });
    });
  }
}
