#!/usr/bin/env node
/** The command line: one file per command, each adds itself here. */
import { Command, CommanderError } from 'commander';
import { ReplicationError } from '../base/errors.js';
import { replpageVersion } from '../base/version.js';
import { addCheckpoint, addRestore } from './checkpoint.js';
import { exitCodes, report } from './context.js';
import { addDaemon } from './daemon.js';
import { addDemo } from './demo.js';
import { addDoctor } from './doctor.js';
import { addEvents } from './events.js';
import { addDetach, addPromote, addUnprotect } from './group-actions.js';
import { addEvict } from './evict.js';
import { addInit, addJoin, addToken } from './init.js';
import { addInspect } from './inspect.js';
import { addKey } from './key.js';
import { addDrill } from './drill.js';
import { addDrain, addMove } from './move.js';
import { addNodes } from './nodes.js';
import { addProtect } from './protect.js';
import { addStatus } from './status.js';

const help = `
Exit status:
  0   done
  1   it failed; the message says why
  64  the command line is not understood
  65  refused: something of the process cannot be replicated
  66  there is no such process, group or node
  69  no daemon answers
  70  a bug in replpage
  75  not now; try again
  77  not permitted
  130 interrupted

Every command but daemon takes --json: one object on stdout, errors as {"error": {...}} too.`;

async function main(): Promise<number> {
  const json = process.argv.includes('--json');
  const program = new Command('replpage')
    .description('Keeps a warm replica of a running, unmodified process.')
    .version(replpageVersion)
    .addHelpText('after', help)
    .exitOverride()
    // What the parser finds wrong is reported below, as everything else is.
    .configureOutput({
      writeErr: (text) => void (json || process.stderr.write(text)),
      outputError: () => undefined,
    });
  let status = 0;
  const setStatus = (code: number): void => {
    status = code;
  };
  const adders = [
    addDaemon,
    addProtect,
    addStatus,
    addInspect,
    addEvict,
    addPromote,
    addUnprotect,
    addDetach,
    addEvents,
    addCheckpoint,
    addRestore,
    addKey,
    addInit,
    addToken,
    addJoin,
    addNodes,
    addMove,
    addDrain,
    addDrill,
    addDoctor,
    addDemo,
  ];
  for (const add of adders) add(program, setStatus);
  try {
    await program.parseAsync(typed(program), { from: 'user' });
  } catch (error) {
    if (!(error instanceof CommanderError)) return report(error, json);
    if (error.exitCode === 0) return 0;
    // The help, where no command was given.
    if (error.code === 'commander.help') return exitCodes.usage;
    return report(usageError(error, typed(program)[0]), json);
  }
  return status;
}

/** What was typed; of a command that there is not only its name, so that --help does not hide that. */
function typed(program: Command): readonly string[] {
  const args = process.argv.slice(2);
  const [first] = args;
  if (first === undefined || first.startsWith('-') || first === 'help') return args;
  return program.commands.some((command) => command.name() === first) ? args : [first];
}

function usageError(error: CommanderError, command: string | undefined): ReplicationError {
  const message = error.message.replace(/^error: /, '');
  const known = command !== undefined && error.code !== 'commander.unknownCommand';
  const help = known && !command.startsWith('-') ? `replpage ${command} --help` : 'replpage --help';
  const several = command === 'protect' && error.code === 'commander.excessArguments';
  const advice = several
    ? "give one pid, the root of the tree: of a server with workers that of its first process, such as nginx's master"
    : `${help} shows what there is`;
  return new ReplicationError('ERR_USAGE', message, { advice });
}

// A reader that went away (`replpage events | head`) ends the command quietly.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(0);
  process.stderr.write(`replpage: cannot write the result: ${error.message}\n`);
  process.exit(exitCodes.failure);
});
process.exitCode = await main();
