/** The map of a group's memory as a picture: a strip a mapping, the parts of each cell stacked. */
import type { InspectedMapping, InspectedProcess, PageCounts } from '../api/schema.js';
import { formatBytes } from '../base/units.js';
import {
  addCounts,
  formatAddress,
  joinCells,
  labelOf,
  pageStates,
  printable,
  type PageState,
} from './inspect-text.js';

/** Told apart by brightness as well. */
const colours: Readonly<Record<PageState, string>> = {
  hot: '#b3261e',
  warm: '#f2a65a',
  cold: '#8fb8de',
  absent: '#eeeeee',
};

const pageBytes = 4096;
const labelWidth = 330;
const stripWidth = 640;
const rowHeight = 22;
const stripHeight = 16;
const margin = 16;
const cellsMax = 160;
const width = 2 * margin + labelWidth + stripWidth;

export function escapeXml(text: string): string {
  const entities: Readonly<Record<string, string>> = {
    '&': '&amp;',
    '<': '&lt;',
    '>': '&gt;',
    '"': '&quot;',
  };
  return text.replace(/[&<>"]/g, (sign) => entities[sign] ?? sign);
}

const round = (value: number): string => String(Math.round(value * 100) / 100);

interface Box {
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
}

const rectangle = (box: Box, fill: string): string =>
  `<rect x="${round(box.x)}" y="${round(box.y)}" width="${round(box.width)}" ` +
  `height="${round(box.height)}" fill="${fill}"/>`;

const words = (x: number, y: number, text: string, more = ''): string =>
  `<text x="${round(x)}" y="${round(y)}"${more}>${escapeXml(text)}</text>`;

/** Neighbours that look alike are one cell. */
function strip(mapping: InspectedMapping, x: number, y: number): string {
  const cells = joinCells(mapping.cells, cellsMax);
  const each = stripWidth / Math.max(1, cells.length);
  const drawn: string[] = [];
  for (let first = 0; first < cells.length;) {
    const cell = cells[first];
    if (cell === undefined) break;
    let last = first + 1;
    while (last < cells.length && sameShares(cell, cells[last])) last++;
    drawn.push(stack(cell, { x: x + first * each, y, width: (last - first) * each, height: 0 }));
    first = last;
  }
  return drawn.join('');
}

const pagesOf = (cell: PageCounts): number =>
  pageStates.reduce((sum, state) => sum + cell[state], 0);

function sameShares(left: PageCounts, right: PageCounts | undefined): boolean {
  if (right === undefined) return false;
  const [leftPages, rightPages] = [pagesOf(left), pagesOf(right)];
  return pageStates.every((state) => left[state] * rightPages === right[state] * leftPages);
}

function stack(cell: PageCounts, box: Box): string {
  const pages = pagesOf(cell);
  let y = box.y;
  return pageStates
    .filter((state) => cell[state] > 0)
    .map((state) => {
      const height = (cell[state] / pages) * stripHeight;
      const part = rectangle({ ...box, y, height }, colours[state]);
      y += height;
      return part;
    })
    .join('');
}

function row(mapping: InspectedMapping, y: number): string {
  const counts = addCounts(mapping.cells);
  const label = labelOf(mapping);
  const short = label.length > 24 ? `...${label.slice(-21)}` : label;
  const title = [
    `${formatAddress(mapping.start)}-${formatAddress(mapping.end)} ${label}`,
    ...pageStates.map((state) => `${state} ${formatBytes(counts[state] * pageBytes)}`),
  ].join(', ');
  const middle = y + stripHeight - 4;
  return (
    `<g><title>${escapeXml(title)}</title>` +
    words(margin, middle, formatAddress(mapping.start)) +
    words(margin + 100, middle, short) +
    words(
      margin + labelWidth - 12,
      middle,
      formatBytes(mapping.end - mapping.start),
      rightAligned,
    ) +
    strip(mapping, margin + labelWidth, y) +
    '</g>'
  );
}

const rightAligned = ' text-anchor="end"';

function legend(y: number): string {
  return pageStates
    .map((state, i) => {
      const x = margin + labelWidth + i * 90;
      const box = { x, y, width: 12, height: 12 };
      return rectangle(box, colours[state]) + words(x + 18, y + 11, state);
    })
    .join('');
}

/** A whole SVG document that refers to nothing outside itself. */
export function drawInspection(name: string, processes: readonly InspectedProcess[]): string {
  let y = margin;
  const drawn: string[] = [
    words(margin, y + 11, `memory of ${printable(name)}`, ' font-weight="bold"'),
    legend(y),
  ];
  y += 2 * rowHeight;
  for (const process of processes) {
    const title = `process ${process.pid} ${printable(process.command)}`;
    drawn.push(words(margin, y + stripHeight - 4, title, ' font-weight="bold"'));
    y += rowHeight;
    for (const mapping of process.mappings) {
      drawn.push(row(mapping, y));
      y += rowHeight;
    }
    y += rowHeight / 2;
  }
  const height = y + margin;
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${round(height)}" ` +
    `viewBox="0 0 ${width} ${round(height)}" font-family="monospace" font-size="12">` +
    `${rectangle({ x: 0, y: 0, width, height }, '#ffffff')}${drawn.join('\n')}</svg>\n`
  );
}
