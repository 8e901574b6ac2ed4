/** A group's map of pages as the API shows it. */
import type { InspectedProcess } from '../api/schema.js';
import type { NativeMapping } from '../native/group.js';

/** Parts of a mapping: as fine as a picture shows. */
export const cellsShown = 160;

export function inspectedProcesses(
  mappings: readonly NativeMapping[],
  names: ReadonlyMap<number, string>,
): readonly InspectedProcess[] {
  const pids = [...new Set(mappings.map(({ pid }) => pid))];
  return pids.map((pid) => ({
    pid,
    command: names.get(pid) ?? '',
    mappings: mappings
      .filter((mapping) => mapping.pid === pid)
      .map(({ start, end, kind, path, cells }) => ({ start, end, kind, path, cells })),
  }));
}
