/** The map of a group's memory as text: one line a mapping, with a bar of what its parts are. */
import type { InspectedMapping, InspectedProcess, PageCounts } from '../api/schema.js';
import { formatBytes } from '../base/units.js';
import { formatTable } from './table.js';

export type PageState = keyof PageCounts;
export const pageStates: readonly PageState[] = ['hot', 'warm', 'cold', 'absent'];

const pageBytes = 4096;
const signs: Readonly<Record<PageState, string>> = { hot: '#', warm: '+', cold: '.', absent: ' ' };

export function addCounts(cells: readonly PageCounts[]): PageCounts {
  const sum = { hot: 0, warm: 0, cold: 0, absent: 0 };
  for (const cell of cells) for (const state of pageStates) sum[state] += cell[state];
  return sum;
}

/** What most pages of a cell are; of equals the hotter. */
export function mostly(cell: PageCounts): PageState {
  let most: PageState = 'hot';
  for (const state of pageStates) if (cell[state] > cell[most]) most = state;
  return cell[most] === 0 ? 'absent' : most;
}

/** Cells taken together until there are at most `width`. */
export function joinCells(cells: readonly PageCounts[], width: number): readonly PageCounts[] {
  const each = Math.max(1, Math.ceil(cells.length / width));
  return Array.from({ length: Math.ceil(cells.length / each) }, (_, i) =>
    addCounts(cells.slice(i * each, (i + 1) * each)),
  );
}

export function formatAddress(address: number): string {
  return address.toString(16).padStart(12, '0');
}

/** A name could hold anything: control characters would move the terminal's cursor. */
export function printable(name: string): string {
  return name.replace(/[\u0000-\u001F\u007F-\u009F]/g, '?');
}

export function labelOf(mapping: InspectedMapping): string {
  return printable(mapping.path === '' ? mapping.kind : mapping.path);
}

const size = (pages: number): string => (pages === 0 ? '-' : formatBytes(pages * pageBytes));

const countCells = (counts: PageCounts): readonly string[] =>
  pageStates.map((state) => size(counts[state]));

export function formatInspection(processes: readonly InspectedProcess[], barWidth = 32): string {
  const parts = processes.map((process) => {
    const all = addCounts(process.mappings.flatMap((mapping) => mapping.cells));
    const rows = [
      ['address', 'size', 'what', ...pageStates, ''],
      ...process.mappings.map((mapping) => [
        formatAddress(mapping.start),
        formatBytes(mapping.end - mapping.start),
        labelOf(mapping),
        ...countCells(addCounts(mapping.cells)),
        `|${joinCells(mapping.cells, barWidth)
          .map((cell) => signs[mostly(cell)])
          .join('')}|`,
      ]),
      ['', '', 'in all', ...countCells(all), ''],
    ];
    return `process ${process.pid} ${printable(process.command)}\n${formatTable(rows)}`;
  });
  const legend = pageStates.map((state) => `'${signs[state]}' ${state}`).join(', ');
  return [...parts, `mostly ${legend}`].join('\n\n');
}
