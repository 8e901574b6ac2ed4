/** Questions to other nodes over their control connections, and the answers that belong to them. */
import { deferred, type Deferred } from '../base/deferred.js';
import { ReplicationError } from '../base/errors.js';
import type { Member, ReplicaMessage } from '../format/peer-messages.js';
import type { ClusterNode } from '../membership/cluster-node.js';

const answerKinds = [
  'replicaPrepared',
  'primaryState',
  'fileTaken',
  'recordsTaken',
  'recordTold',
] as const;
type AnswerKind = (typeof answerKinds)[number];
export type Answer<K extends AnswerKind = AnswerKind> = Extract<ReplicaMessage, { kind: K }>;

export const isAnswer = (message: ReplicaMessage): message is Answer =>
  (answerKinds as readonly string[]).includes(message.kind);

export class PeerRequests {
  readonly #waiting = new Map<
    number,
    { readonly node: string; readonly answer: Deferred<Answer> }
  >();
  #last = 0;

  /** Rejects with ERR_STATE when the node is not heard, or answers something else. */
  async ask<K extends AnswerKind>(
    cluster: ClusterNode,
    member: Member,
    kind: K,
    limitMs: number,
    message: (request: number) => ReplicaMessage,
  ): Promise<Answer<K>['body']> {
    const request = ++this.#last;
    const answer = deferred<Answer>();
    this.#waiting.set(request, { node: member.id, answer });
    const late = setTimeout(() => {
      answer.reject(unheard(member.name, `it did not answer within ${limitMs / 1000} s`));
    }, limitMs);
    try {
      if (!cluster.send(member.id, message(request))) {
        throw unheard(member.name, 'there is no connection');
      }
      const heard = await answer.promise;
      if (heard.kind !== kind) throw unheard(member.name, 'it answered something else');
      return heard.body as Answer<K>['body'];
    } finally {
      clearTimeout(late);
      this.#waiting.delete(request);
    }
  }

  heard(member: Member, answer: Answer): void {
    const waiting = this.#waiting.get(answer.body.request);
    if (waiting?.node === member.id) waiting.answer.resolve(answer);
  }
}

function unheard(node: string, why: string): ReplicationError {
  return new ReplicationError('ERR_STATE', `node ${node} cannot be asked: ${why}`, {
    advice: 'replpage nodes shows which can be reached',
  });
}
