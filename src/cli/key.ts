/** `replpage key export` and `import`: the key of the page stores, for another machine to read them. */
import {
  closeSync,
  fstatSync,
  fsyncSync,
  openSync,
  readFileSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { dirname, resolve } from 'node:path';
import type { Command } from 'commander';
import { hasCode, ReplicationError } from '../base/errors.js';
import { contextOf, print, printJson, withCommonFlags, type CommonFlags } from './context.js';

const advice = 'name a file that is not there yet, or redirect into one with mode 0600';

export function addKey(program: Command): void {
  const key = program.command('key').description('the key that pages in the store are sealed with');
  withCommonFlags(key.command('export'))
    .description('write the key to a file of mode 0600, for restore --key on another machine')
    .argument('[file]', 'not there yet (default: standard output, unless others may read it)')
    .action(async (file: string | undefined, flags: CommonFlags) => {
      const context = contextOf(flags);
      if (file === undefined) checkOutput(context.json);
      const report = await context.client.key();
      if (file === undefined) return print(report.key);
      const path = resolve(file);
      writeKey(path, report.key);
      if (context.json) return printJson({ file: path });
      print(`the key is in ${path}; whoever has it can read all memory in the page store`);
    });
  withCommonFlags(key.command('import'))
    .description('give the daemon a key that init or key export printed, where it has none')
    .argument('[file]', 'that holds it (default: standard input)')
    .action(async (file: string | undefined, flags: CommonFlags) => {
      const context = contextOf(flags);
      const report = await context.client.importKey(readKey(file));
      if (context.json) return printJson(report);
      print(report.imported ? 'the key is in place' : 'that key was there already');
    });
}

/** Either form: what is wrong with it is the daemon's to say. */
function readKey(file: string | undefined): string {
  try {
    return readFileSync(file === undefined ? 0 : resolve(file), 'utf8').trim();
  } catch (error) {
    const what = file ?? 'standard input';
    throw new ReplicationError('ERR_USAGE', `cannot read the key from ${what}: ${String(error)}`);
  }
}

/** Throws ERR_USAGE when the key would be seen by others. */
function checkOutput(json: boolean): void {
  if (json) throw new ReplicationError('ERR_USAGE', '--json needs a file for the key', { advice });
  const output = fstatSync(1);
  const others = (output.mode & 0o077) !== 0;
  if (output.isFIFO() || output.isSocket() || (output.isFile() && !others)) return;
  const what = output.isFile() ? 'a file that others may read' : 'a terminal or a device';
  throw new ReplicationError('ERR_USAGE', `the key is not written to ${what}`, { advice });
}

/** Never overwrites, and leaves nothing half written. */
function writeKey(path: string, key: string): void {
  let file: number;
  try {
    file = openSync(path, 'wx', 0o600);
  } catch (error) {
    const why = hasCode(error, 'EEXIST') ? 'it is there already' : String(error);
    throw new ReplicationError('ERR_USAGE', `cannot write the key to ${path}: ${why}`, { advice });
  }
  try {
    writeSync(file, `${key}\n`);
    fsyncSync(file);
    const folder = openSync(dirname(path), 'r');
    fsyncSync(folder);
    closeSync(folder);
  } catch (error) {
    rmSync(path, { force: true });
    throw error;
  } finally {
    closeSync(file);
  }
}
