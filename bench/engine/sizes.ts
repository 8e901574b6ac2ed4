/** How large and how long each measurement is; the defaults are the full size. */
import { parseArgs } from 'node:util';

export interface Sizes {
  /** Memory of redis and of the programs whose pauses are measured. */
  readonly mib: number;
  /** Largest memory for which the time from decision to first instruction is taken. */
  readonly mibMax: number;
  readonly kills: number;
  readonly pairs: number;
  readonly seconds: number;
  readonly only: readonly string[];
  /** Of the loads of redis-benchmark those whose name begins so. */
  readonly load: string;
}

export const usage = `
  --mib 1024        memory of redis and of the paused programs
  --mib-max 4096    largest memory for the time from decision to first instruction
  --kills 30        samples of each restart
  --pairs 5         times with and without protection, in turns
  --seconds 10      least length of each; with protection also at least two epochs
  --small           128 MiB, 5 kills, 3 pairs of 3 seconds, for a first look
  --only restart,decision,pause,throughput,signals,churn,copy
  --load one|whole  only that load of redis-benchmark (one hot key, whole key space)`;

export function readSizes(args: readonly string[]): Sizes {
  const { values } = parseArgs({
    args: [...args],
    options: {
      mib: { type: 'string' },
      'mib-max': { type: 'string' },
      kills: { type: 'string' },
      pairs: { type: 'string' },
      seconds: { type: 'string' },
      small: { type: 'boolean', default: false },
      only: { type: 'string', default: '' },
      load: { type: 'string', default: '' },
    },
  });
  const pick = (text: string | undefined, full: number, small: number): number =>
    text === undefined ? (values.small ? small : full) : Number(text);
  return {
    mib: pick(values.mib, 1024, 128),
    mibMax: pick(values['mib-max'], 4096, 256),
    kills: pick(values.kills, 30, 5),
    pairs: pick(values.pairs, 5, 3),
    seconds: pick(values.seconds, 10, 3),
    only: values.only === '' ? [] : values.only.split(','),
    load: values.load,
  };
}
