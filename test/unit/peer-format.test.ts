/** What travels between nodes, and what of it is believed. */
import { randomBytes } from 'node:crypto';
import t from 'tap';
import { fromBase32, toBase32 } from '../../src/format/base32.js';
import { formatChecked, parseChecked } from '../../src/format/checked-file.js';
import { crc32c } from '../../src/format/crc32c.js';
import { encodeFrame, frameHeaderBytes, FrameReader, type Frame } from '../../src/format/frame.js';
import { formatToken, parseToken, pinOf } from '../../src/format/join-token.js';
import {
  decodeMessage,
  encodeMessage,
  protocolsMeet,
  type Member,
  type PeerMessage,
} from '../../src/format/peer-messages.js';
import { formatRecoveryKey, parseKey } from '../../src/format/recovery-key.js';
import { FormatError } from '../../src/format/shape.js';
import {
  addToken,
  admissionLimits,
  claim,
  mayTry,
  noAdmission,
} from '../../src/membership/admission-state.js';
import { digestOf, mergeMembers } from '../../src/membership/member-list.js';
import { healthOf, renewalDue } from '../../src/membership/renewal-policy.js';
import { parseAddress, formatAddress } from '../../src/transport/peer-tls.js';
import { memberOf, randomOf } from '../sim/network.js';

const id = '0123456789abcdef';
const hello: PeerMessage = {
  kind: 'hello',
  body: { cluster: id, id, name: 'a', protocol: 1, version: '0.1.0', run: id },
};
const messages: readonly PeerMessage[] = [
  hello,
  { kind: 'refusal', body: { code: 'token', why: 'used' } },
  { kind: 'heartbeat', body: { sequence: 1, echo: 0, heldUs: 0, digest: '1-2-3' } },
  { kind: 'members', body: { members: [memberOf(0), { ...memberOf(1), zone: 'rack 1' }] } },
  { kind: 'renew', body: { request: 'AAAA' } },
];

t.test('the checksum is CRC-32C', (t) => {
  t.equal(crc32c(Buffer.from('123456789')), 0xe3069283);
  t.equal(crc32c(Buffer.alloc(0)), 0);
  t.end();
});

t.test('messages come out of a stream wherever it is split', (t) => {
  const good = messages.filter(({ kind }) => kind !== 'members');
  const stream = Buffer.concat(good.map(encodeMessage));
  for (let at = 0; at <= stream.length; at++) {
    const reader = new FrameReader(4096);
    const frames = [...reader.push(stream.subarray(0, at)), ...reader.push(stream.subarray(at))];
    if (frames.length !== good.length) t.fail(`split at ${at}: ${frames.length} frames`);
    if (at % 50 === 0) t.same(frames.map(decodeMessage), good);
    if (reader.waiting) t.fail(`split at ${at}: something is left`);
  }
  const reader = new FrameReader(4096);
  t.notOk(reader.waiting);
  t.same([...reader.push(stream.subarray(0, 1))], []);
  t.ok(reader.waiting, 'a frame that has begun can be late');
  t.same([...reader.push(encodeFrame(9, Buffer.alloc(0)).subarray(1))].length, 1, 'an empty body');
  t.end();
});

t.test('a frame that is not right in any bit is refused', (t) => {
  const frame = encodeMessage(hello);
  for (let bit = 0; bit < frame.length * 8; bit++) {
    const damaged = Buffer.from(frame);
    damaged[bit >> 3] = (damaged[bit >> 3] ?? 0) ^ (1 << (bit & 7));
    try {
      const frames = [...new FrameReader(4096).push(damaged)];
      if (frames.length > 0) t.fail(`bit ${bit} did not matter`);
    } catch (error) {
      if (!(error instanceof FormatError)) throw error;
    }
  }
  const long = encodeFrame(1, Buffer.alloc(100));
  t.throws(() => [...new FrameReader(99).push(long)], /a frame of 100 bytes is over 99/);
  const header = long.subarray(0, frameHeaderBytes);
  t.throws(() => [...new FrameReader(99).push(header)], /over 99/, 'before any of its body');
  t.end();
});

t.test('bodies are decoded or refused, whatever is in them', (t) => {
  const frameOf = (type: number, body: unknown): Frame => ({
    ...{ type, body: Buffer.from(typeof body === 'string' ? body : JSON.stringify(body)) },
  });
  const refused: readonly (readonly [Frame, RegExp])[] = [
    [frameOf(99, {}), /no message 99/],
    [frameOf(1, '{'), /not JSON/],
    [frameOf(1, 'null'), /hello is no object/],
    [frameOf(1, { ...hello.body, name: '../x' }), /hello\.name is not as it must be/],
    [frameOf(1, { ...hello.body, protocol: 0 }), /protocol is no number/],
    [frameOf(1, { ...hello.body, cluster: undefined }), /cluster is no text/],
    [frameOf(3, { sequence: 1.5, echo: 0, heldUs: 0, digest: '' }), /sequence/],
    [frameOf(5, { members: Array(3000).fill(memberOf(1)) }), /more than 2048/],
    [frameOf(5, { members: [{ ...memberOf(1), removed: 1 }] }), /members\[0\]\.removed/],
  ];
  for (const [frame, why] of refused) t.throws(() => decodeMessage(frame), why);
  const more = { ...hello.body, later: { than: 'us' } };
  t.same(decodeMessage(frameOf(1, more)).body, hello.body, 'what we do not know is left out');
  // Any bytes in any message, and sound messages with one value replaced.
  const random = randomOf(7);
  const pick = <T>(from: readonly T[]): T => from[Math.floor(random() * from.length)] as T;
  const values = [null, 0, -1, 1e99, '', 'x'.repeat(5000), [], {}, [[]], true, { toJSON: 1 }];
  for (let round = 0; round < 20_000; round++) {
    const message = pick(messages);
    const body = { ...message.body } as Record<string, unknown>;
    body[pick([...Object.keys(body), '__proto__', 'constructor'])] = pick(values);
    const noise = randomBytes(Math.floor(random() * 40)).toString('latin1');
    const type = round % 3 === 0 ? Math.floor(random() * 20) : 1;
    try {
      decodeMessage(frameOf(type, round % 2 === 0 ? body : noise));
    } catch (error) {
      if (!(error instanceof FormatError)) throw error;
    }
  }
  t.notOk('later' in {}, 'no prototype was touched');
  t.ok(protocolsMeet(3, 4) && protocolsMeet(4, 3) && !protocolsMeet(3, 5));
  t.end();
});

t.test('keys and tokens can be typed back, and a slip is seen', (t) => {
  for (let length = 0; length < 40; length++) {
    const bytes = randomBytes(length);
    t.same(fromBase32(toBase32(bytes).toUpperCase(), length), bytes);
  }
  const key = randomBytes(32);
  const text = formatRecoveryKey(key);
  t.match(text, /^([0-9a-hjkmnp-tv-z]{4}-){13}[0-9a-hjkmnp-tv-z]{4}$/);
  t.same(parseKey(text.replaceAll('-', ' ').toUpperCase().replaceAll('0', 'O')), key);
  const sum = crc32c(key).toString(16).padStart(8, '0');
  t.same(parseKey(`${key.toString('hex')}-${sum}\n`), key, 'as key export has it');
  t.throws(() => parseKey(`${key.toString('hex')}-00000000`), /checksum/);
  t.throws(() => parseKey(text.slice(1)), /characters/);
  t.throws(() => parseKey(text.replace(/.$/, 'u')), /alphabet/);
  let unseen = 0;
  for (let at = 0; at < text.length; at++) {
    if (text[at] === '-') continue;
    const other = text[at] === 'x' ? 'y' : 'x';
    try {
      parseKey(text.slice(0, at) + other + text.slice(at + 1));
      unseen++;
    } catch {
      // As it must be.
    }
  }
  t.equal(unseen, 0);
  const token = { id: '01020304', secret: randomBytes(16), pin: pinOf(Buffer.from('ca')) };
  t.same(parseToken(formatToken(token)), token);
  t.throws(() => parseToken('hello'), /begin/);
  const slip = formatToken(token).replace(/.{3}$/, '000');
  t.throws(() => parseToken(slip), FormatError);
  t.end();
});

t.test('a state file is believed wholly or not at all', (t) => {
  const kind = { mark: 'replpage-cluster', version: 1 };
  const file = formatChecked(kind, { a: [1, 'ä'] });
  t.same(parseChecked(kind, file), { a: [1, 'ä'] });
  for (let at = 0; at < file.length; at++) {
    t.throws(() => parseChecked(kind, file.subarray(0, at)), FormatError);
    const damaged = Buffer.from(file);
    damaged[at] = (damaged[at] ?? 0) ^ 4;
    t.throws(() => parseChecked(kind, damaged), FormatError, `byte ${at}`);
  }
  t.throws(() => parseChecked({ ...kind, version: 2 }, file), /version is 1, known is 2/);
  t.throws(() => parseChecked({ ...kind, mark: 'replpage-groups' }, file), /begin with/);
  t.end();
});

t.test('addresses', (t) => {
  t.same(parseAddress('h:1'), { host: 'h', port: 1 });
  t.same(parseAddress('h', 7), { host: 'h', port: 7 });
  t.same(parseAddress('[fe80::1%eth0]:9'), { host: 'fe80::1%eth0', port: 9 });
  for (const bad of ['', ':1', 'h', 'h:0', 'h:65536', 'a b:1', '::1:7', '[::1]', 'h:x']) {
    t.equal(parseAddress(bad), undefined, bad);
  }
  t.equal(formatAddress({ host: '::1', port: 2 }), '[::1]:2');
  t.end();
});

t.test('lists are merged to the same in any order', (t) => {
  const random = randomOf(11);
  for (let round = 0; round < 200; round++) {
    const heard: Member[] = Array.from({ length: 12 }, () => ({
      ...memberOf(Math.floor(random() * 4)),
      ...{ revision: Math.floor(random() * 3), zone: `z${Math.floor(random() * 3)}` },
      removed: random() < 0.1,
    }));
    const shuffled = [...heard].sort(() => random() - 0.5);
    const one = heard.reduce(
      (list, each) => mergeMembers(list, [each]).list,
      [] as readonly Member[],
    );
    const other = mergeMembers(mergeMembers([], shuffled).list, heard).list;
    if (digestOf(one) !== digestOf(other)) t.fail(`round ${round}: ${digestOf(one)}`);
    if (mergeMembers(one, heard).changed.length > 0) t.fail(`round ${round}: changed again`);
  }
  t.end();
});

t.test('a token is good once, in time, and for who can prove it', (t) => {
  let state = addToken(noAdmission, { id: 'a', expiresMs: 1000, signs: false }, 0);
  if (state === undefined) throw new Error('too many');
  const wrong = claim(state, 'a', false, 10);
  const unknown = claim(state, 'b', true, 10);
  t.same(wrong.verdict, unknown.verdict, 'a stranger cannot tell the two');
  t.match(claim(state, 'a', true, 1000).verdict, { why: /expired/ });
  const good = claim(wrong.state, 'a', true, 999);
  t.match(good.verdict, { kind: 'admitted' }, 'a wrong try does not spoil it');
  t.match(claim(good.state, 'a', true, 999).verdict, { why: /used already/ });
  t.match(claim(good.state, 'a', false, 999).verdict, { why: /not one of this node/ });
  state = noAdmission;
  for (let count = 0; count < admissionLimits.tokensMax; count++) {
    state = addToken(state, { id: `${count}`, expiresMs: 9, signs: false }, 0) ?? noAdmission;
  }
  t.equal(addToken(state, { id: 'x', expiresMs: 9, signs: false }, 8), undefined);
  t.ok(addToken(state, { id: 'x', expiresMs: 20, signs: false }, 10), 'others have expired');
  t.end();
});

t.test('strangers get few tries, each address its own', (t) => {
  let state = noAdmission;
  const ask = (from: string, nowMs: number): boolean => {
    const tried = mayTry(state, from, nowMs);
    state = tried.state;
    return tried.allowed;
  };
  const first = Array.from({ length: 8 }, () => ask('h', 0));
  t.equal(first.filter(Boolean).length, admissionLimits.tries);
  t.ok(ask('other', 0));
  t.notOk(ask('h', admissionLimits.tryEveryMs - 1));
  t.ok(ask('h', admissionLimits.tryEveryMs));
  t.notOk(ask('h', admissionLimits.tryEveryMs));
  for (let count = 0; count < 1000; count++) ask(`h${count}`, 0);
  t.ok(state.strangers.size <= admissionLimits.strangersMax);
  t.end();
});

t.test('a certificate is renewed from two thirds of its life on, until it is', (t) => {
  const day = 86_400_000;
  const validity = { fromMs: 0, untilMs: 90 * day };
  t.notOk(renewalDue(validity, 59 * day, undefined));
  t.ok(renewalDue(validity, 60 * day, undefined));
  t.notOk(renewalDue(validity, 60 * day + 1000, 60 * day), 'not every second');
  t.ok(renewalDue(validity, 60 * day + 3_600_000, 60 * day));
  t.ok(renewalDue(validity, 60 * day, 70 * day), 'a clock that was set back is no reason to wait');
  t.ok(renewalDue(validity, 99 * day, undefined), 'late is better than never');
  t.equal(healthOf(validity, 74 * day), 'good');
  t.equal(healthOf(validity, 76 * day), 'renewal overdue');
  t.equal(healthOf(validity, 90 * day), 'expired');
  t.ok(renewalDue({ fromMs: 0, untilMs: 9000 }, 7500, 6500), 'short lives: a try a second');
  t.end();
});
