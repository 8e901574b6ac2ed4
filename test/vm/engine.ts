/**
 * The engine's own tests on stock kernels: the native ones, and those of test/e2e that an emulated
 * machine finishes in reasonable time, with every tracker that the kernel has.
 *
 * REPLPAGE_VM_VICTIMS=name,name runs these victims instead of all, REPLPAGE_VM_TRACKERS and
 * REPLPAGE_VM_PARTS=victims,kills,redis,native only these.
 */
import t, { type Test } from 'tap';
import type { Listener } from './bed/agent.js';
import type { Bed } from './bed/bed.js';
import { lastLines } from './bed/bed-error.js';
import { runMs } from './bed/patience.js';
import { begin, note } from './findings.js';
import { kernels, onBed, short } from './on-bed.js';

/** Of a node, on a host that has other things to do; limits only: nothing waits so long. */
const slowness = 50;
/** Native tests have some ten copies of 128 MiB at a time. */
const memoryMiB = 2560;
/** Those of the short run. */
const shortVictims = ['memory model'];
/** Those of a second tracker: the first one has them all. */
const memoryVictims = [
  'memory model',
  'memory under load',
  'shared memory',
  'memory attributes',
  'stack and heap',
];
/** Native tests of following memory, by parts of their names. */
const ofMemory = 'discard mapping copied copy heap stack round walk shared';
const named = (variable: string): readonly string[] | undefined =>
  process.env[`REPLPAGE_VM_${variable}`]?.split(',');
const victims = named('VICTIMS') ?? (short ? shortVictims : undefined);
const everyPart = ['victims', 'kills', 'redis', 'native'];
const parts = named('PARTS') ?? (short ? ['victims'] : everyPart);

/**
 * Shows the cases as they end: without that, an hour of emulation looks like a hang. On standard error,
 * since comments of a test are kept back until its next result.
 */
function shown(): Listener {
  let text = '';
  return (stream, chunk) => {
    if (stream !== 'stdout') return;
    const lines = (text + chunk.toString()).split('\n');
    text = lines.pop() ?? '';
    for (const line of lines)
      if (/^ {0,4}(not )?ok \d/.test(line)) console.error(`# ${line.trim()}`);
  };
}

/** Runs a test program on the node; gives its cases by their words. */
async function cases(
  bed: Bed,
  command: string,
): Promise<{ passed: number; failed: string[]; skipped: number; status: number; text: string }> {
  const settings = `TAP_TIMEOUT=${runMs / 1000} REPLPAGE_TEST_SLOWNESS=${slowness}`;
  const { status, stdout, stderr } = await bed
    .node(1)
    .run(`cd /opt/replpage && export ${settings} && ${command}`, {
      limitMs: runMs,
      listener: shown(),
    });
  const lines = stdout.split('\n').map((line) => line.trim());
  const ok = lines.filter((line) => /^ok \d/.test(line));
  const skipped = ok.filter((line) => /# SKIP/i.test(line)).length;
  return {
    passed: ok.length - skipped,
    failed: lines.filter((line) => /^not ok \d/.test(line)),
    skipped,
    status,
    text: `${stdout}${stderr}`,
  };
}

/** Each failed case with what was said before it, as native tests do, and after it, as others do. */
function reasons(text: string): string {
  const lines = text.split('\n');
  const parts = lines.flatMap((line, at) => {
    if (!/^\s*not ok \d/.test(line)) return [];
    const before = lines.slice(Math.max(0, at - 8), at);
    const since = before.findLastIndex((other) => /^\s*(not )?ok \d/.test(other)) + 1;
    return [...before.slice(since), ...lines.slice(at, at + 40)];
  });
  return parts.join('\n');
}

async function runs(
  t: Test,
  bed: Bed,
  kernel: string,
  what: string,
  command: string,
): Promise<void> {
  begin(kernel, 'Engine', what);
  const { passed, failed, skipped, status, text } = await cases(bed, command);
  t.same(failed, [], `${what}: ${passed} pass, ${skipped} are skipped`);
  t.equal(status, 0, `${what} ends with status 0`);
  if (status !== 0) t.comment(`${reasons(text)}\n---\n${lastLines(text, 40)}`);
  const counts = `${passed} passed, ${failed.length} failed, ${skipped} skipped`;
  const names = failed.map((line) => line.replace(/^not ok \d+ - | # time.*$/g, ''));
  const found = status === 0 ? counts : `**${counts}**: ${names.join('; ') || 'it died'}`;
  note(kernel, 'Engine', what, found.replaceAll('|', '/'));
}

interface Check {
  readonly name: string;
  readonly value: unknown;
  readonly ok: boolean | null;
  readonly degraded?: boolean;
}

interface Report {
  readonly ok: boolean;
  readonly checks: readonly Check[];
}

async function asksDoctor(t: Test, bed: Bed, kernel: string): Promise<string[]> {
  const text = await bed.node(1).sh('/opt/replpage/dist/cli/main.js doctor --json');
  const report = JSON.parse(text) as Report;
  t.ok(report.ok, 'the doctor finds nothing missing');
  note(kernel, 'Kernel', 'Release', bed.kernel);
  for (const { name, value, ok, degraded } of report.checks) {
    if (!name.startsWith('kernel: ') && name !== 'write tracking') continue;
    const words = value === true ? 'yes' : value === false ? 'no' : String(value);
    const shown = ok === false || degraded === true ? `**${words}**` : words;
    note(kernel, 'Doctor', name.replace('kernel: ', ''), shown);
  }
  const has = (name: string): boolean =>
    report.checks.some((c) => c.name === name && c.value === true);
  return [
    ...(has('kernel: uffdWp') ? ['uffd-wp'] : []),
    ...(has('kernel: softDirty') ? ['soft-dirty'] : []),
  ];
}

/** A part that is run with each tracker. */
function withTracker(
  part: string,
  isFirst: boolean,
): { readonly title: string; readonly command: string } {
  if (part === 'redis') {
    const command = 'REPLPAGE_TEST_PROGRAMS=redis node test/e2e/programs.test.js';
    return { title: 'redis killed and crashed', command };
  }
  const few = victims ?? (isFirst ? undefined : memoryVictims);
  const chosen = few === undefined ? '' : `REPLPAGE_TEST_VICTIMS='${few.join()}' `;
  return {
    title: 'victims killed, and their successors killed',
    command: `${chosen}node test/e2e/victims.test.js`,
  };
}

const expected: Readonly<Record<string, readonly string[]>> = {
  '6.1': ['soft-dirty'],
  '6.12': ['uffd-wp', 'soft-dirty'],
};

/** All of it on that kernel. */
export function testEngine(kernel: string): void {
  const unknown = parts.filter((part) => !everyPart.includes(part));
  if (unknown.length > 0) throw new Error(`REPLPAGE_VM_PARTS: there is no ${unknown.join()}`);
  const skip = !kernels.includes(kernel) && 'REPLPAGE_VM_KERNELS leaves it out';
  t.test(`${kernel}: the engine`, { skip, timeout: 2 * runMs }, (t) =>
    onBed(t, { kernel, nodes: 1, memoryMiB }, async (bed) => {
      const trackers = await asksDoctor(t, bed, kernel);
      t.same(trackers, expected[kernel] ?? trackers, 'the trackers that work here');
      const chosen = named('TRACKERS') ?? (short ? trackers.slice(0, 1) : trackers);
      for (const tracker of chosen) {
        for (const what of ['victims', 'redis'].filter((part) => parts.includes(part))) {
          const { title, command } = withTracker(what, tracker === trackers[0]);
          const set = `export REPLPAGE_TEST_TRACKER=${tracker} REPLPAGE_TEST_REDIS_MIB=4`;
          await runs(t, bed, kernel, `${tracker}: ${title}`, `${set}; ${command}`);
        }
      }
      if (parts.includes('kills')) {
        const command = 'export REPLPAGE_TEST_KILLS=1; node test/e2e/kills.test.js';
        await runs(t, bed, kernel, 'killed more than once', command);
      }
      if (!parts.includes('native')) return;
      // These last: they take longest.
      await runs(t, bed, kernel, 'native tests', `build/Release/core_test`);
      for (const tracker of trackers.slice(1)) {
        const natively = `export REPLPAGE_TEST_TRACKER=${tracker}; build/Release/core_test`;
        const what = `${tracker}: native tests of memory`;
        await runs(t, bed, kernel, what, `${natively} ${ofMemory}`);
      }
    }),
  );
}
