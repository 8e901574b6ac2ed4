/** What is measured between nodes. */
import { parseArgs } from 'node:util';
import { whyNoNamespaces } from '../../test/cluster/namespaces.js';
import type { Figures } from '../figures.js';
import type { Suite } from '../suite.js';
import { measureNative, measureStreams } from './stream.js';

export const peersUsage = `
  --seconds N   of each stream (3)
  --rounds N    of all kinds in turns (3)
  --only NAME   streams, native`;

export function peers(options: readonly string[], figures: Figures): Suite {
  const { values } = parseArgs({
    args: [...options],
    options: {
      seconds: { type: 'string', default: '3' },
      rounds: { type: 'string', default: '3' },
      only: { type: 'string', multiple: true, default: [] },
    },
  });
  const { seconds, rounds, only } = values;
  const sizes = { seconds: Number(seconds), rounds: Number(rounds), only };
  const why = whyNoNamespaces();
  const streams = async (): Promise<void> => {
    if (why !== undefined) throw new Error(why);
    await measureStreams(sizes, figures);
  };
  return {
    sizes,
    measurements: [
      { name: 'streams', run: streams },
      { name: 'native', run: () => measureNative(sizes.rounds, figures) },
    ],
    afterEach: () => Promise.resolve(),
    atTheEnd: () => Promise.resolve(),
  };
}
