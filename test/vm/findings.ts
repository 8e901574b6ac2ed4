/** What the runs found on each kernel, kept for docs/kernel-support.md, which is made from nothing else. */
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { root } from '../support/repository.js';

/** Parts of the page, in its order. */
export const topics = [
  ...(['Kernel', 'Nodes', 'Doctor', 'Engine', 'Two nodes'] as const),
  ...(['Dying processes', 'NFS', 'NILFS2'] as const),
] as const;
export type Topic = (typeof topics)[number];

interface Finding {
  readonly topic: Topic;
  readonly what: string;
  readonly kernel: string;
  readonly found: string;
}

const folder = path.join(root, 'build/vm/findings');

/** For what a run is about to find: it shows as failed unless a finding takes its place. */
export function begin(kernel: string, topic: Topic, ...what: readonly string[]): void {
  for (const each of what) note(kernel, topic, each, '**failed**');
}

/** What is found by a part of the tests says nothing of the rest, and would take the place of more. */
const partial =
  process.env['REPLPAGE_VM_SHORT'] === '1' ||
  ['KERNELS', 'VICTIMS', 'TRACKERS', 'PARTS'].some((name) => `REPLPAGE_VM_${name}` in process.env);

export function note(kernel: string, topic: Topic, what: string, found: string): void {
  if (partial) return;
  mkdirSync(folder, { recursive: true });
  const finding: Finding = { topic, what, kernel, found };
  const name = `${kernel}-${topic}-${what}`.replaceAll(/[^A-Za-z0-9.]+/g, '-');
  writeFileSync(path.join(folder, `${name}.json`), JSON.stringify(finding));
}

function read(): Finding[] {
  const names = existsSync(folder) ? readdirSync(folder).sort() : [];
  return names.map((name) => JSON.parse(readFileSync(path.join(folder, name), 'utf8')) as Finding);
}

const introduction = `# Kernel support

Made by \`npm run test:vm\` from what its runs found, on emulated nodes with Debian's own kernels; not
written by hand. An empty field was not run; what is bold failed, or is done in a lesser way: \`replpage
doctor\` says there what it is for.
`;

function table(findings: readonly Finding[], kernels: readonly string[]): string {
  const rows = [...new Set(findings.map(({ what }) => what))];
  const cell = (what: string, kernel: string): string =>
    findings.find((each) => each.what === what && each.kernel === kernel)?.found ?? '';
  return [
    `| | ${kernels.join(' | ')} |`,
    `| --- | ${kernels.map(() => '---').join(' | ')} |`,
    ...rows.map((what) => `| ${[what, ...kernels.map((each) => cell(what, each))].join(' | ')} |`),
  ].join('\n');
}

const inOrder = new Intl.Collator('en', { numeric: true });

/** Writes the page; gives false, and leaves it as it is, where nothing was found. */
export function writeReport(): boolean {
  const findings = read();
  if (findings.length === 0) return false;
  const kernels = [...new Set(findings.map(({ kernel }) => kernel))].sort(inOrder.compare);
  const parts = topics
    .map((topic) => ({ topic, own: findings.filter((each) => each.topic === topic) }))
    .filter(({ own }) => own.length > 0)
    .map(({ topic, own }) => `## ${topic}\n\n${table(own, kernels)}\n`);
  writeFileSync(path.join(root, 'docs/kernel-support.md'), [introduction, ...parts].join('\n'));
  return true;
}
