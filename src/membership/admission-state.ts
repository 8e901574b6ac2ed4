/**
 * Who may join: one-time tokens and how often a stranger may try, as a pure machine. Whether a proof
 * is right is found by the caller (join-server.ts); what that means is decided here.
 */

export interface TokenRecord {
  readonly id: string;
  readonly expiresMs: number;
  readonly used: boolean;
  /** The node is to hold the CA's key. */
  readonly signs: boolean;
}

/** Tries left to one address; it gets new ones as time passes. */
interface Allowance {
  readonly tries: number;
  readonly atMs: number;
}

export interface AdmissionState {
  readonly tokens: readonly TokenRecord[];
  readonly strangers: ReadonlyMap<string, Allowance>;
}

export const admissionLimits = {
  tokensMax: 64,
  /** A used or expired token is remembered for so long, to say so. */
  rememberMs: 24 * 3_600_000,
  tries: 5,
  /** One more after each. */
  tryEveryMs: 2000,
  strangersMax: 256,
} as const;

export const noAdmission: AdmissionState = { tokens: [], strangers: new Map() };

/** undefined: there are too many. */
export function addToken(
  state: AdmissionState,
  token: Omit<TokenRecord, 'used'>,
  nowMs: number,
): AdmissionState | undefined {
  const kept = state.tokens.filter(
    ({ expiresMs }) => nowMs < expiresMs + admissionLimits.rememberMs,
  );
  const open = kept.filter(({ expiresMs, used }) => !used && nowMs < expiresMs);
  if (open.length >= admissionLimits.tokensMax) return undefined;
  // Of those that are over, the newest are remembered.
  const over = kept.filter((each) => !open.includes(each)).slice(-admissionLimits.tokensMax);
  return { ...state, tokens: [...over, ...open, { ...token, used: false }] };
}

/** Whether a stranger at `from` may try now. */
export function mayTry(
  state: AdmissionState,
  from: string,
  nowMs: number,
): { readonly state: AdmissionState; readonly allowed: boolean } {
  const before = state.strangers.get(from) ?? { tries: admissionLimits.tries, atMs: nowMs };
  const earned = Math.floor((nowMs - before.atMs) / admissionLimits.tryEveryMs);
  const tries = Math.min(admissionLimits.tries, before.tries + earned);
  const atMs =
    tries === admissionLimits.tries ? nowMs : before.atMs + earned * admissionLimits.tryEveryMs;
  const allowed = tries > 0;
  const strangers = new Map(state.strangers);
  strangers.delete(from);
  strangers.set(from, { tries: allowed ? tries - 1 : 0, atMs });
  // The longest unheard of is forgotten first.
  for (const [address] of strangers) {
    if (strangers.size <= admissionLimits.strangersMax) break;
    strangers.delete(address);
  }
  return { state: { ...state, strangers }, allowed };
}

export type Verdict =
  | { readonly kind: 'admitted'; readonly token: TokenRecord }
  | { readonly kind: 'refused'; readonly why: string };

const refused = (why: string): Verdict => ({ kind: 'refused', why });

/**
 * A right proof uses the token up. Only who has proved to know it hears what became of it; to all
 * others a token that there never was and a wrong secret look the same.
 */
export function claim(
  state: AdmissionState,
  id: string,
  right: boolean,
  nowMs: number,
): { readonly state: AdmissionState; readonly verdict: Verdict } {
  const token = state.tokens.find((each) => each.id === id);
  if (token === undefined || !right) {
    const why = 'the token is not one of this node: it is wrong, or the daemon was started since';
    return { state, verdict: refused(why) };
  }
  if (token.used) return { state, verdict: refused('the token was used already') };
  if (nowMs >= token.expiresMs) return { state, verdict: refused('the token has expired') };
  const tokens = state.tokens.map((each) => (each === token ? { ...each, used: true } : each));
  return { state: { ...state, tokens }, verdict: { kind: 'admitted', token } };
}
