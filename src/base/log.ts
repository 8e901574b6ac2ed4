/**
 * Structured logs on stderr, one JSON object a line: stdout belongs to a command's result.
 * Messages are lower-case and constant, data is in fields.
 */
import { pino } from 'pino';

export interface Log {
  debug(fields: object, message: string): void;
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
  /** Same destination; `fields` are added to every line. */
  child(fields: Record<string, unknown>): Log;
}

export const logLevels = ['debug', 'info', 'warn', 'error', 'silent'] as const;
export type LogLevel = (typeof logLevels)[number];

/** Lines that could not be written are kept up to this, and dropped beyond. */
const unwrittenBytesMax = 256 * 1024;

export function createLog(level: LogLevel): Log {
  const destination = pino.destination({ dest: 2, sync: true, maxLength: unwrittenBytesMax });
  // A log that cannot be written (a full disk, a closed terminal) must not end whoever logs.
  destination.on('error', () => undefined);
  return pino({ level, base: null, timestamp: pino.stdTimeFunctions.isoTime }, destination);
}
