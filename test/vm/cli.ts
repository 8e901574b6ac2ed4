/** npm run vm -- COMMAND: nodes to play with. */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { root } from '../support/repository.js';
import { Bed, prepareMachine, type BedOptions } from './bed/bed.js';
import { BedError, reasonOf, UnavailableError } from './bed/bed-error.js';
import { interruptible } from './bed/interruption.js';
import type { Clocks, Direction } from './bed/node.js';
import { bedNames, dismantle, dismantleOwn, readState, sweep } from './bed/state.js';
import { writeReport } from './findings.js';

const usage = readFileSync(path.join(root, 'test/vm/usage.txt'), 'utf8').trimEnd();

const options = {
  kernel: { type: 'string', default: '6.12' },
  memory: { type: 'string' },
  processors: { type: 'string' },
  cold: { type: 'boolean', default: false },
  clocks: { type: 'string', default: 'stopped' },
  'one-way': { type: 'string' },
  name: { type: 'string', default: 'default' },
  help: { type: 'boolean', default: false },
} as const;

type Values = ReturnType<typeof parse>['values'];

function parse(args: readonly string[]) {
  // `--one-way` may stand alone, and what follows `sh N` belongs to the node's command.
  const given = args[0] === 'sh' ? args : withDirection(args);
  const all = { args: given, options, allowPositionals: true };
  const { tokens } = parseArgs({ ...all, strict: false, tokens: true });
  const words = tokens.filter(({ kind }) => kind === 'positional');
  const own = given[words[0]?.index ?? 0] === 'sh' ? (words[2]?.index ?? -1) : -1;
  const parsed = parseArgs({
    ...all,
    args: own < 0 ? given : given.slice(0, own),
    strict: true,
  });
  return {
    values: parsed.values,
    positionals: parsed.positionals,
    rest: own < 0 ? [] : given.slice(own),
  };
}

function withDirection(args: readonly string[]): string[] {
  const at = args.indexOf('--one-way');
  if (at < 0) return [...args];
  const next = args[at + 1];
  const named = next === 'out' || next === 'in';
  return args.toSpliced(at, named ? 2 : 1, `--one-way=${named ? next : 'out'}`);
}

/** Status 64 of <sysexits.h>, and where to find help. */
class UsageError extends BedError {
  constructor(message: string) {
    super(`${message}\n  npm run vm -- help lists the commands`);
  }
}

/** How many words each command takes after its name, at most. */
const wordsMax: Readonly<Record<string, number>> = {
  up: 1,
  down: 0,
  status: 0,
  prepare: 0,
  report: 0,
};

function checkWords(command: string, words: readonly string[]): void {
  const surplus = words[wordsMax[command] ?? 1];
  if (surplus !== undefined && command !== 'sh') {
    throw new UsageError(`${command}: what is ${surplus} for?`);
  }
}

const say = (text: string): void =>
  console.error(`vm: ${(performance.now() / 1000).toFixed(1)} s: ${text}`);

async function up(values: Values, [nodes = '1']: readonly string[]): Promise<number> {
  const started = performance.now();
  const { kernel, name, cold } = values;
  const options: BedOptions = {
    ...{ kernel, nodes: Number(nodes), name, cold, outlives: true, progress: say },
    ...(values.memory !== undefined && { memoryMiB: Number(values.memory) }),
    ...(values.processors !== undefined && { processors: Number(values.processors) }),
  };
  const bed = await interruptible(() => Bed.up(options), dismantleOwn);
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  say(`${bed.nodes.length} nodes of ${bed.kernel} answer after ${seconds} s`);
  for (const node of bed.nodes) node.release();
  return 0;
}

async function sh(bed: Bed, number: number, words: readonly string[]): Promise<number> {
  if (words.length === 0) throw new UsageError('sh N COMMAND: which command?');
  const node = bed.node(number);
  try {
    const { status } = await node.run(words.join(' '), {
      limitMs: 2 ** 31 - 1,
      listener: (stream, chunk) => process[stream].write(chunk),
    });
    return status;
  } finally {
    node.release();
  }
}

function chosen<T extends string>(value: string, from: readonly T[], flag: string): T {
  const found = from.find((each) => each === value);
  if (found === undefined) throw new UsageError(`${flag} takes ${from.join(' or ')}, not ${value}`);
  return found;
}

function showStatus(): number {
  for (const name of bedNames()) {
    const state = readState(name);
    console.log(`${name}: ${state?.kernel ?? 'unfinished'}`);
    if (!state) continue;
    for (const node of Bed.attach(name).nodes) {
      const how = node.running ? `runs as process ${node.process?.pid}` : 'does not run';
      console.log(`  ${node.name} ${node.address} ${how}`);
    }
  }
  return 0;
}

async function down(name: string): Promise<number> {
  const there = bedNames().includes(name);
  await sweep();
  if (!there) say(`there is no bed ${name}`);
  const left = bedNames().includes(name) ? await dismantle(name) : [];
  for (const each of left) say(`left behind: ${each}`);
  return left.length > 0 ? 1 : 0;
}

const nodeCommands = ['sh', 'crash', 'start', 'hang', 'partition', 'unplug', 'heal', 'console'];

/** `n2` and `2` are one. */
function numberOf(command: string, word: string | undefined): number {
  if (word === undefined) throw new UsageError(`${command} N: of which node?`);
  const [, digits] = /^n?(\d+)$/.exec(word) ?? [];
  if (digits === undefined) throw new UsageError(`${command} N: ${word} is no node`);
  return Number(digits);
}

async function onNode(command: string, values: Values, words: readonly string[], rest: string[]) {
  if (!nodeCommands.includes(command)) throw new UsageError(`unknown command ${command}`);
  const number = command === 'heal' && words.length === 0 ? 1 : numberOf(command, words[0]);
  const ways: readonly Direction[] = ['out', 'in'];
  const oneWay = values['one-way'] && chosen(values['one-way'], ways, '--one-way');
  const clocks = chosen<Clocks>(values.clocks, ['stopped', 'running'], '--clocks');
  const bed = Bed.attach(values.name);
  const node = bed.node(number);
  if (command === 'sh') return sh(bed, number, rest);
  if (command === 'crash') await node.crash();
  else if (command === 'start') await bed.start(number, { cold: values.cold });
  else if (command === 'hang') {
    await node.hang(clocks);
  } else if (command === 'partition') {
    await node.partition(oneWay || 'both');
  } else if (command === 'unplug') await node.unplug();
  else if (command === 'console') console.log(node.lastWords());
  else {
    const all = words.length === 0 ? bed.nodes.filter((each) => each.running) : [node];
    for (const each of all) await each.heal();
  }
  for (const each of bed.nodes) each.release();
  return 0;
}

async function dispatch(args: readonly string[]): Promise<number> {
  const { values, positionals, rest } = parse(args);
  const [command, ...words] = positionals;
  if (command === undefined || values.help) {
    console.log(usage);
    return command === undefined && !values.help ? 64 : 0;
  }
  checkWords(command, words);
  if (command === 'up') return up(values, words);
  if (command === 'down') return down(values.name);
  if (command === 'status') return showStatus();
  if (command === 'prepare') {
    const options = { kernel: values.kernel, nodes: 1, progress: say };
    await interruptible(() => prepareMachine(options), dismantleOwn);
    return 0;
  }
  if (command === 'report') {
    if (writeReport()) return 0;
    throw new BedError('nothing was found yet: npm run test:vm');
  }
  return onNode(command, values, words, rest);
}

const hasCode = (error: unknown, form: RegExp): boolean =>
  error instanceof Error && 'code' in error && form.test(String(error.code));

/** Without what Node.js advises on arguments, which npm takes apart. */
const shortened = (error: unknown): string =>
  hasCode(error, /^ERR_PARSE_ARGS/) ? (reasonOf(error).split('. ', 1)[0] ?? '') : reasonOf(error);

/** As <sysexits.h> has it. */
const unavailableStatus = 69;

/** Gives the exit status: 69 where packages cannot be had, 64 for what is no command, else 1. */
export async function main(args: readonly string[]): Promise<number> {
  try {
    return await dispatch(args);
  } catch (error) {
    console.error(`vm: ${shortened(error)}`);
    if (error instanceof UsageError || hasCode(error, /^ERR_PARSE_ARGS/)) return 64;
    return error instanceof UnavailableError ? unavailableStatus : 1;
  }
}
