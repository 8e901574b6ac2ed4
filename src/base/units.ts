/**
 * Quantities as users type and read them: "100ms", "5%", "256MiB". Parsers throw ERR_USAGE with
 * what was typed and what would be right.
 */
import { ReplicationError } from './errors.js';

const durationUnitsMs: Readonly<Record<string, number>> = {
  us: 0.001,
  ms: 1,
  s: 1000,
  min: 60_000,
  h: 3_600_000,
};

const byteUnits: Readonly<Record<string, number>> = {
  B: 1,
  KiB: 1024,
  MiB: 1024 ** 2,
  GiB: 1024 ** 3,
  TiB: 1024 ** 4,
};

function parseQuantity(
  text: string,
  units: Readonly<Record<string, number>>,
  example: string,
): number {
  const match = /^(\d+(?:\.\d+)?)\s*([A-Za-z]+)$/.exec(text.trim());
  const unit = match?.[2] ?? '';
  const factor = Object.hasOwn(units, unit) ? units[unit] : undefined;
  if (match?.[1] === undefined || factor === undefined) {
    throw new ReplicationError('ERR_USAGE', `"${text}" is not understood`, {
      advice: `write a number and one of ${Object.keys(units).join(', ')}, such as ${example}`,
    });
  }
  return Number(match[1]) * factor;
}

/** `parser`, with the option that was wrong at the front of its error. */
export function parseOption<T>(option: string, text: string, parser: (text: string) => T): T {
  try {
    return parser(text);
  } catch (error) {
    if (!(error instanceof ReplicationError)) throw error;
    throw new ReplicationError(error.code, `${option}: ${error.message}`, {
      advice: error.advice,
    });
  }
}

/** Throws ERR_USAGE with both ends as `format` writes them. */
export function checkRange(
  value: number,
  low: number,
  high: number,
  format: (value: number) => string,
): number {
  if (value >= low && value <= high) return value;
  throw new ReplicationError('ERR_USAGE', `${format(value)} is not possible`, {
    advice: `from ${format(low)} to ${format(high)}`,
  });
}

/** "42" -> 42; up to nine digits. */
export function parseWhole(text: string): number {
  if (/^\d{1,9}$/.test(text)) return Number(text);
  throw new ReplicationError('ERR_USAGE', `"${text}" is not a whole number of 0 or more`);
}

/** "250us", "100ms", "2s", "1min", "1h" -> milliseconds. */
export function parseDurationMs(text: string): number {
  return parseQuantity(text, durationUnitsMs, '100ms');
}

/** "512B", "64KiB", "256MiB", "1.5GiB" -> bytes, rounded. */
export function parseBytes(text: string): number {
  return Math.round(parseQuantity(text, byteUnits, '256MiB'));
}

/** "5%" -> 0.05. Between 0 (excluded) and 100 %. */
export function parsePercent(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*%$/.exec(text.trim());
  const share = match?.[1] === undefined ? Number.NaN : Number(match[1]) / 100;
  if (!(share > 0 && share <= 1)) {
    throw new ReplicationError('ERR_USAGE', `"${text}" is not a share`, {
      advice: 'write a percentage above 0% and up to 100%, such as 5%',
    });
  }
  return share;
}

/** 1610612736 -> "1.5 GiB". */
export function formatBytes(bytes: number): string {
  const units = Object.entries(byteUnits).reverse();
  const [unit, size] = units.find(([, factor]) => bytes >= factor) ?? ['B', 1];
  const value = bytes / size;
  return `${value >= 100 || size === 1 ? Math.round(value) : value.toFixed(1)} ${unit}`;
}

/** Three digits are enough: 1.23, 12.3, 123. */
function threeDigits(value: number): string {
  return value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0);
}

/** Microseconds -> "870 us", "12.3 ms", "4.10 s". */
export function formatUs(us: number): string {
  if (us < 1000) return `${Math.round(us)} us`;
  if (us < 1_000_000) return `${threeDigits(us / 1000)} ms`;
  return `${threeDigits(us / 1_000_000)} s`;
}

export function formatMs(ms: number): string {
  return formatUs(ms * 1000);
}

/** 0.0512 -> "5.1%". */
export function formatPercent(share: number): string {
  return `${(share * 100).toFixed(1)}%`;
}

/** What a promotion lost: "nothing lost", "from epoch 7, 120 ms lost". */
export function formatLoss(promotion: {
  readonly exact: boolean;
  readonly epoch: number;
  readonly lostMs?: number | null | undefined;
  readonly whyNotExact?: string | null | undefined;
}): string {
  const { exact, epoch, lostMs, whyNotExact } = promotion;
  if (exact) return 'nothing lost';
  const lost = typeof lostMs === 'number' ? `, ${formatMs(lostMs)} lost` : '';
  const why = whyNotExact ? ` (${whyNotExact})` : '';
  return `from epoch ${epoch}${lost}${why}`;
}
