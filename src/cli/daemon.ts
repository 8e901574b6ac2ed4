/** `replpage daemon`: the only command, with doctor, that runs the daemon's own code. */
import type { Command } from 'commander';
import { ReplicationError } from '../base/errors.js';
import type { DaemonFlags } from '../daemon/config.js';

export function addDaemon(program: Command, setStatus: (code: number) => void): void {
  program
    .command('daemon')
    .description("run this node's daemon in the foreground (as root; logs go to stderr)")
    .option('--runtime-dir <dir>', 'socket and keepers (default /run/replpage)')
    .option('--state-dir <dir>', 'groups and spill files (default /var/lib/replpage)')
    .option('--log-dir <dir>', 'output of promoted programs (default /var/log/replpage)')
    .option('--log-level <level>', 'debug, info, warn, error or silent (default info)')
    .option('--freeze-deadline <time>', 'a freeze is given up after this, 1ms to 1s (default 20ms)')
    .option('--staging-max <bytes>', 'memory for one epoch, 32MiB to 256MiB (default 256MiB)')
    .option('--spill-max <bytes>', 'disk beyond that, 0B to 1TiB (default 16GiB)')
    .option('--store <dir>', 'page store of cold pages (default: store in the state folder)')
    .option(
      '--store-max <bytes>',
      'of one group in it, checkpoints too, 64MiB to 64TiB (default 1TiB)',
    )
    .option(
      '--access-tracker <kind>',
      'auto (default), page-walk, idle-bitmap or write-recency: what tells touched pages',
    )
    .addHelpText(
      'after',
      `
With another --runtime-dir state and logs move below it, to state/ and log/, unless they are given.
Each option can be given as REPLPAGE_RUNTIME_DIR, REPLPAGE_STATE_DIR ... in the environment.
SIGTERM lets every protected process go, unharmed; the next start protects them again.`,
    )
    .action(async (flags: DaemonFlags) => {
      if (process.getuid?.() !== 0) {
        throw new ReplicationError('ERR_DENIED', 'the daemon needs root: it traces processes', {
          advice: 'sudo replpage daemon',
        });
      }
      const { readConfig } = await import('../daemon/config.js');
      const { runDaemon } = await import('../daemon/daemon.js');
      setStatus(await runDaemon(readConfig(flags, process.env)));
    });
}
