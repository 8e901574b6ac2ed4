/** A plot of lines as SVG, readable on light and dark ground. Pure. */
export interface Axis {
  readonly label: string;
  readonly max: number;
  readonly step: number;
}

export interface Line {
  readonly name: string;
  readonly points: readonly (readonly [x: number, y: number])[];
  readonly dashed?: boolean;
}

export interface Plot {
  readonly title: string;
  readonly x: Axis;
  readonly y: Axis;
  readonly lines: readonly Line[];
}

const [width, height] = [640, 400];
const [left, right, top, bottom] = [60, 20, 40, 50];
const colours = ['#1f77b4', '#d62728', '#2ca02c'];
const grey = '#888';

const escaped = (text: string): string =>
  text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');

export function plotOf({ title, x, y, lines }: Plot): string {
  const atX = (value: number): number => left + (value / x.max) * (width - left - right);
  const atY = (value: number): number =>
    height - bottom - (value / y.max) * (height - top - bottom);
  const text = (at: readonly [number, number], words: string, more = ''): string =>
    `<text x="${at[0].toFixed(1)}" y="${at[1].toFixed(1)}" ${more}>${escaped(words)}</text>`;
  const rule = (from: readonly [number, number], to: readonly [number, number]): string =>
    `<path d="M${from.join(',')}L${to.join(',')}" stroke="${grey}" stroke-width="0.4"/>`;
  const parts = [
    text([width / 2, 24], title, 'text-anchor="middle" font-weight="bold"'),
    text([width / 2, height - 12], x.label, 'text-anchor="middle"'),
    text(
      [16, height / 2],
      y.label,
      `text-anchor="middle" transform="rotate(-90 16 ${height / 2})"`,
    ),
  ];
  for (const tick of ticks(x)) {
    parts.push(rule([atX(tick), top], [atX(tick), height - bottom]));
    parts.push(text([atX(tick), height - bottom + 16], String(tick), 'text-anchor="middle"'));
  }
  for (const tick of ticks(y)) {
    parts.push(rule([left, atY(tick)], [width - right, atY(tick)]));
    parts.push(text([left - 6, atY(tick) + 4], String(tick), 'text-anchor="end"'));
  }
  lines.forEach(({ name, points, dashed }, i) => {
    const colour = dashed ? grey : (colours[i % colours.length] ?? grey);
    const path = points.map(([px, py]) => `${atX(px).toFixed(1)},${atY(py).toFixed(1)}`);
    const dashes = dashed ? ' stroke-dasharray="5 4"' : '';
    parts.push(
      `<path d="M${path.join('L')}" fill="none" stroke="${colour}" stroke-width="2"${dashes}/>`,
      text([left + 12, top + 18 + 16 * i], name, `style="fill:${colour}"`),
    );
  });
  const style = 'font-family="sans-serif" font-size="12" fill="#777"';
  const head = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" ${style}>`;
  return `${[head, ...parts, '</svg>'].join('\n')}\n`;
}

function ticks({ max, step }: Axis): number[] {
  return Array.from({ length: Math.floor(max / step + 1e-9) + 1 }, (_, i) =>
    Number((i * step).toPrecision(6)),
  );
}
