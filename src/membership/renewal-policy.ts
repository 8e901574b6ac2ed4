/** When a node's certificate is renewed: long before it ends, and again and again until it is. */

export interface Validity {
  /** Wall time, in milliseconds since 1970. */
  readonly fromMs: number;
  readonly untilMs: number;
}

/** Of the whole life, that passes before the first try: a signing node may be away for the rest. */
const renewAtShare = 2 / 3;
/** A warning follows when so much has passed. */
const warnAtShare = 5 / 6;
/** Between tries: a part of the life, but not more often and not more rarely than these. */
const retryShare = 1 / 200;
const retryMs = { min: 1000, max: 3_600_000 };

const lifeOf = ({ fromMs, untilMs }: Validity): number => untilMs - fromMs;

export function renewalDue(
  validity: Validity,
  wallMs: number,
  lastTryMs: number | undefined,
): boolean {
  if (wallMs < validity.fromMs + lifeOf(validity) * renewAtShare) return false;
  if (lastTryMs === undefined || lastTryMs > wallMs) return true;
  const pause = Math.min(retryMs.max, Math.max(retryMs.min, lifeOf(validity) * retryShare));
  return wallMs - lastTryMs >= pause;
}

export type CertificateHealth = 'good' | 'renewal overdue' | 'expired';

export function healthOf(validity: Validity, wallMs: number): CertificateHealth {
  if (wallMs >= validity.untilMs) return 'expired';
  const overdue = wallMs >= validity.fromMs + lifeOf(validity) * warnAtShare;
  return overdue ? 'renewal overdue' : 'good';
}
