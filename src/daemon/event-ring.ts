/** What happened lately, for `replpage events`: the last `capacity` events, each told to listeners. */
import type { EventRecord } from '../api/schema.js';
import type { Clock } from '../base/clock.js';

export type EventListener = (event: EventRecord) => void;

export class EventRing {
  readonly #capacity: number;
  readonly #clock: Clock;
  readonly #events: EventRecord[] = [];
  readonly #listeners = new Set<EventListener>();
  #lastId = 0;

  constructor(capacity: number, clock: Clock) {
    this.#capacity = capacity;
    this.#clock = clock;
  }

  add(group: string, what: string, why: string): EventRecord {
    const time = this.#clock.wall().toISOString();
    const event = { id: ++this.#lastId, time, group, what, why };
    this.#events.push(event);
    if (this.#events.length > this.#capacity) this.#events.shift();
    for (const listener of this.#listeners) listener(event);
    return event;
  }

  /** Oldest first, those with an id above `after`. */
  since(after: number): readonly EventRecord[] {
    return this.#events.filter((event) => event.id > after);
  }

  /** Gives the way to stop listening. */
  listen(listener: EventListener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }
}
