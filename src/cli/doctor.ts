/** `replpage doctor`: what this machine offers, and what is missing for what. */
import type { Command } from 'commander';
import { hasCode } from '../base/errors.js';
import type { DoctorCheck } from '../daemon/doctor.js';
import {
  contextOf,
  exitCodes,
  print,
  printJson,
  withCommonFlags,
  type CommonFlags,
  type Context,
} from './context.js';
import { formatTable } from './table.js';

export function addDoctor(program: Command, setStatus: (code: number) => void): void {
  withCommonFlags(program.command('doctor'))
    .description('what this kernel offers, what is missing, and what that means')
    .action(async (flags: CommonFlags) => {
      const context = contextOf(flags);
      const { examine } = await import('../daemon/doctor.js');
      const report = examine(await daemonState(context));
      if (!report.ok) setStatus(exitCodes.failure);
      if (context.json) return printJson(report);
      const rows = report.checks.map((check) => [
        `${markOf(check)} ${check.name}`,
        String(check.value),
        check.meaning,
      ]);
      print(formatTable(rows));
      if (report.checks.some(({ degraded }) => degraded === true)) {
        print('what is marked ! works less well here than it could');
      }
      print(
        report.ok ? 'this machine can protect processes' : 'this machine lacks what is marked !!',
      );
    });
}

function markOf({ ok, degraded }: DoctorCheck): string {
  if (ok === null) return degraded === true ? ' ! ' : '   ';
  return ok ? 'ok ' : '!! ';
}

async function daemonState(context: Context): Promise<string> {
  try {
    const { daemon } = await context.client.status();
    return `runs as pid ${daemon.pid}`;
  } catch (error) {
    return hasCode(error, 'ERR_NO_DAEMON') ? 'none runs' : 'does not answer you';
  }
}
