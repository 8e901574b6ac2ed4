/** The measured figures as docs/paging.md shows them: a table, and two plots in SVG. */
import { readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import type { Figure } from '../figures.js';
import { mebibytes } from './paged.js';
import { plotOf } from './plot.js';
import { noResults, type Results } from './results.js';

export interface Measured {
  readonly figures: readonly Figure[];
  readonly results: Results;
}

const begin = '<!-- figures -->';
const end = '<!-- end of figures -->';
const stepS = 0.1;

/**
 * `kept`: a file with what earlier runs have measured, so that the whole may be measured in parts;
 * what is measured anew replaces it.
 */
export async function writeDocument(
  folder: string,
  kept: string,
  measured: Measured,
  conditions: string,
): Promise<void> {
  const { figures, results } = await merged(kept, measured);
  if (results.ram.length > 0)
    await writeFile(path.join(folder, 'paging-ram.svg'), ramPlot(results));
  if (results.zipf.length > 0) {
    await writeFile(path.join(folder, 'paging-zipf.svg'), zipfPlot(results));
  }
  const file = path.join(folder, 'paging.md');
  const text = await readFile(file, 'utf8');
  const first = text.indexOf(begin) + begin.length;
  const last = text.indexOf(end);
  if (first < begin.length || last < first) throw new Error(`${file} has no place for the figures`);
  const rows = figures.map(({ name, value, unit, target, ok }) => [
    name,
    `${value} ${unit}`.trim(),
    target,
    ok ? 'yes' : '**no**',
  ]);
  const parts = [conditions, table(['figure', 'measured', 'target', 'met'], rows)];
  if (results.ram.length > 0) parts.push(ramTable(results));
  await writeFile(file, `${text.slice(0, first)}\n\n${parts.join('\n\n')}\n\n${text.slice(last)}`);
}

async function merged(kept: string, { figures, results }: Measured): Promise<Measured> {
  const none: Measured = { figures: [], results: noResults() };
  const text = await readFile(kept, 'utf8').catch(() => undefined);
  const before = text === undefined ? none : (JSON.parse(text) as Measured);
  const join = <T>(old: readonly T[], fresh: readonly T[], key: (one: T) => unknown): T[] => [
    ...old.map((one) => fresh.find((other) => key(other) === key(one)) ?? one),
    ...fresh.filter((one) => !old.some((other) => key(other) === key(one))),
  ];
  const all: Measured = {
    figures: join(before.figures, figures, ({ name }) => name),
    results: {
      ram: join(before.results.ram, results.ram, ({ share }) => share).sort(
        (a, b) => a.share - b.share,
      ),
      zipf: join(before.results.zipf, results.zipf, ({ name }) => name),
    },
  };
  await writeFile(kept, JSON.stringify(all));
  return all;
}

function ramTable({ ram }: Results): string {
  const mib = (bytes: number): string => mebibytes(bytes).toFixed(1);
  const head = ['working set', 'replica', 'keeper', 'pager', 'staging', 'index', 'all', 'full'];
  const rows = ram.map(({ share, ram: one, full }) => [
    `${share} %`,
    ...[one.replicaBytes, one.keeperBytes, one.pagerBytes].map(mib),
    ...[one.stagingBytes, one.indexBytes, one.totalBytes, full.totalBytes].map(mib),
  ]);
  return `MiB of RAM, at the peak of the sum:\n\n${table(head, rows)}`;
}

/** As the formatter would have it. */
function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = head.map((cell, i) =>
    Math.max(3, cell.length, ...rows.map((row) => row[i]?.length ?? 0)),
  );
  const line = (cells: readonly string[]): string =>
    `| ${cells.map((cell, i) => cell.padEnd(widths[i] ?? 0)).join(' | ')} |`;
  const rule = line(widths.map((width) => '-'.repeat(width)));
  return [line(head), rule, ...rows.map(line)].join('\n');
}

function ramPlot({ ram }: Results): string {
  return plotOf({
    title: 'RAM of a replica',
    x: { label: 'working set, % of memory', max: 100, step: 10 },
    y: { label: '% of a full replica', max: 110, step: 10 },
    lines: [
      { name: 'ideal', points: [0, 100].map((at) => [at, at] as const), dashed: true },
      { name: 'measured', points: ram.map(({ share, percent }) => [share, percent] as const) },
    ],
  });
}

function zipfPlot({ zipf }: Results): string {
  const highest = Math.max(...zipf.flatMap(({ perSecond }) => perSecond)) / 1000;
  const step = 10 ** Math.floor(Math.log10(highest));
  return plotOf({
    title: 'redis under a Zipf load (0.99) after a promotion',
    x: { label: 'seconds since the kill', max: 10, step: 1 },
    y: { label: 'thousand answers a second', max: Math.ceil(highest / step) * step, step },
    lines: zipf.map(({ name, perSecond }) => ({
      name,
      points: perSecond.map((rate, i) => [(i + 1) * stepS, rate / 1000] as const),
    })),
  });
}
