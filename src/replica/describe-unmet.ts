import type { Unmet } from '../native/requirements.js';

const toldMax = 3;

/** In one line, for the user of the other node. */
export function describeUnmet(unmet: readonly Unmet[]): string {
  const told = unmet
    .slice(0, toldMax)
    .map(({ what, where, why, remedy }) => `${what} (${where}): ${why}; ${remedy}`);
  const more = unmet.length > toldMax ? [`and ${unmet.length - toldMax} more`] : [];
  return [...told, ...more].join('; ');
}
