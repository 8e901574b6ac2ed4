/** The map of a group's memory, as text and as a picture. */
import t from 'tap';
import type { InspectedProcess, PageCounts } from '../../src/api/schema.js';
import { drawInspection, escapeXml } from '../../src/cli/inspect-svg.js';
import { addCounts, formatInspection, joinCells, mostly } from '../../src/cli/inspect-text.js';

const cell = (hot: number, warm: number, cold: number, absent: number): PageCounts => ({
  hot,
  warm,
  cold,
  absent,
});

const redis: InspectedProcess = {
  pid: 7,
  command: 'redis-server',
  mappings: [
    {
      start: 0x5555_5555_4000,
      end: 0x5555_5555_4000 + 40 * 4096,
      kind: 'heap',
      path: '',
      cells: [cell(10, 0, 0, 0), cell(2, 8, 0, 0), cell(0, 1, 9, 0), cell(0, 0, 0, 10)],
    },
    {
      start: 0x7f00_0000_0000,
      end: 0x7f00_4000_0000,
      kind: 'anonymous',
      path: 'je<mal>&"loc\u001B[2J',
      cells: Array.from({ length: 1000 }, () => cell(0, 0, 262, 0)),
    },
  ],
};

t.test('cells are added, joined and named by what most of their pages are', (t) => {
  t.same(addCounts([cell(1, 2, 3, 4), cell(10, 20, 30, 40)]), cell(11, 22, 33, 44));
  t.same(addCounts([]), cell(0, 0, 0, 0));
  t.equal(mostly(cell(1, 1, 1, 1)), 'hot');
  t.equal(mostly(cell(0, 1, 2, 2)), 'cold');
  t.equal(mostly(cell(0, 0, 0, 0)), 'absent');
  t.same(joinCells([cell(1, 0, 0, 0), cell(1, 0, 0, 0), cell(0, 0, 0, 5)], 2), [
    cell(2, 0, 0, 0),
    cell(0, 0, 0, 5),
  ]);
  t.equal(joinCells(redis.mappings[1]?.cells ?? [], 32).length, 32);
  t.same(joinCells([], 32), []);
  t.end();
});

t.test('text has a line a mapping and the sums', (t) => {
  const lines = formatInspection([redis]).split('\n');
  t.equal(lines[0], 'process 7 redis-server');
  t.match(lines[1], /^address +size +what +hot +warm +cold +absent$/);
  t.match(
    lines[2],
    /^555555554000 +160 KiB +heap +48\.0 KiB +36\.0 KiB +36\.0 KiB +40\.0 KiB +\|#\+\. \|$/,
  );
  t.match(lines[3], /^7f0000000000 +1\.0 GiB +je<mal>&"loc\?\[2J +- +- +1023 MiB +- +\|\.{32}\|$/);
  t.match(lines[4], /^ +in all +48\.0 KiB +36\.0 KiB +1023 MiB +40\.0 KiB$/);
  t.equal(lines.at(-1), `mostly '#' hot, '+' warm, '.' cold, ' ' absent`);
  t.equal(formatInspection([]), `mostly '#' hot, '+' warm, '.' cold, ' ' absent`);
  t.end();
});

t.test('a picture is well-formed, refers to nothing, and hides no cell', (t) => {
  const svg = drawInspection('a<b>', [redis]);
  t.match(svg, /^<svg xmlns="http:\/\/www\.w3\.org\/2000\/svg" width="1002"/);
  t.match(svg, /memory of a&lt;b&gt;/);
  t.match(svg, /je&lt;mal&gt;&amp;&quot;loc\?\[2J/);
  t.notMatch(svg, /href|url\(|<script|\u001B/);
  // Every tag is closed, in order.
  const open: string[] = [];
  for (const [, closing, name, empty] of svg.matchAll(/<(\/?)(\w+)[^>]*?(\/?)>/g)) {
    if (closing === '/') t.equal(open.pop(), name);
    else if (empty === '') open.push(name ?? '');
  }
  t.same(open, []);
  // The heap: 4 cells of which two are stacks of two; the other mapping: all cells alike.
  const strips = [...svg.matchAll(/<g>.*?<\/g>/gs)].map(([group]) => group);
  t.equal(strips.length, 2);
  t.same(
    strips.map((group) => group.split('<rect').length - 1),
    [6, 1],
  );
  t.match(strips[1], /width="640" height="16" fill="#8fb8de"/);
  t.end();
});

t.test('signs that mean something to XML are written otherwise', (t) => {
  t.equal(escapeXml(`<a b="c">&'`), `&lt;a b=&quot;c&quot;&gt;&amp;'`);
  t.end();
});
