/** How large and how long each measurement of paging is; the defaults are the full size. */
import { parseArgs } from 'node:util';

export interface Sizes {
  /** Memory of the program whose working set is a share of it. */
  readonly mib: number;
  /** Memory of what is killed again and again, and of redis. */
  readonly mibKilled: number;
  /** Working sets, in percent. */
  readonly shares: readonly number[];
  readonly kills: number;
  readonly pairs: number;
  readonly seconds: number;
  readonly only: readonly string[];
  /** Folder on the disk that the page store is made in. */
  readonly disk: string;
  /** Where the table and the plots go; empty: nowhere. */
  readonly docs: string;
}

export const usage = `
  --mib 2048         memory of the program with a working set
  --mib-killed 512   memory of what is killed again and again, and of redis
  --shares 10,30,50,70,100  working sets, in percent
  --kills 10         samples of each promotion
  --pairs 5          times with and without paging, in turns
  --seconds 5        length of each
  --small            256 and 128 MiB, 30,100 percent, 3 kills, 2 pairs of 2 seconds, for a first look
  --only ram,throughput,promotion,answer,faults,zipf
  --disk /var/tmp    where the page store is made; not on tmpfs
  --docs docs        writes the table and the plots there, with what was measured before by --only`;

export function readSizes(args: readonly string[]): Sizes {
  const { values } = parseArgs({
    args: [...args],
    options: {
      mib: { type: 'string' },
      'mib-killed': { type: 'string' },
      shares: { type: 'string' },
      kills: { type: 'string' },
      pairs: { type: 'string' },
      seconds: { type: 'string' },
      small: { type: 'boolean', default: false },
      only: { type: 'string', default: '' },
      disk: { type: 'string', default: '/var/tmp' },
      docs: { type: 'string', default: '' },
    },
  });
  const pick = (text: string | undefined, full: number, small: number): number =>
    text === undefined ? (values.small ? small : full) : Number(text);
  return {
    mib: pick(values.mib, 2048, 256),
    mibKilled: pick(values['mib-killed'], 512, 128),
    shares: (values.shares ?? (values.small ? '30,100' : '10,30,50,70,100')).split(',').map(Number),
    kills: pick(values.kills, 10, 3),
    pairs: pick(values.pairs, 5, 2),
    seconds: pick(values.seconds, 5, 2),
    only: values.only === '' ? [] : values.only.split(','),
    disk: values.disk,
    docs: values.docs,
  };
}
