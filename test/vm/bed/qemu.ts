/** QEMU's command line for one node, and starting it. */
import { spawn } from 'node:child_process';
import { closeSync, openSync, truncateSync } from 'node:fs';
import { once } from 'node:events';
import path from 'node:path';
import { BedError, reasonOf } from './bed-error.js';
import { goOn } from './interruption.js';
import { identify, type ProcessId } from './processes.js';

/** What a node is made of; the same for all nodes that share a saved state. */
export interface Machine {
  readonly vmlinux: string;
  readonly initramfs: string;
  readonly system: string;
  readonly modules: string;
  readonly project: string;
  readonly memoryMiB: number;
  readonly processors: number;
  readonly accelerator: 'tcg' | 'kvm';
}

/** Where the files of one node are. */
export interface NodeFiles {
  readonly console: string;
  readonly log: string;
  readonly qmp: string;
  readonly agent: string;
  readonly pid: string;
  readonly data: string;
}

export const program = 'qemu-system-x86_64';
/** Of each node, empty at first and its own: /dev/data. */
const dataBytes = 512 << 20;
const group = '230.77.0.1:7700';

const kernelArguments = `console=ttyS0 panic=-1 mitigations=off nokaslr tsc=reliable
  no_timer_check rcupdate.rcu_expedited=1 8250.nr_uarts=1 random.trust_cpu=on audit=0 loglevel=4`;

export function filesOf(folder: string, number: number): NodeFiles {
  const at = (kind: string): string => path.join(folder, `n${number}.${kind}`);
  return {
    console: at('console'),
    log: at('log'),
    qmp: at('qmp'),
    agent: at('agent'),
    pid: at('pid'),
    data: at('data'),
  };
}

/** Commas end a setting, doubled ones do not. */
const quoted = (text: string): string => text.replaceAll(',', ',,');

function disk(serial: string, file: string, settings: string): string[] {
  const drive = `if=none,id=${serial},format=raw,file=${quoted(file)},file.locking=off,${settings}`;
  return ['-drive', drive, '-device', `virtio-blk-pci,drive=${serial},serial=${serial}`];
}

/** With `savedState`, memory and devices come from that file instead of a boot. */
export function commandLine(machine: Machine, files: NodeFiles, savedState?: string): string[] {
  const { memoryMiB, processors, accelerator } = machine;
  const socket = (id: string, file: string): string[] => [
    '-chardev',
    `socket,id=${id},path=${quoted(file)},server=on,wait=off`,
  ];
  return [
    ...['-M', 'q35', '-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot'],
    ...(accelerator === 'kvm'
      ? ['-accel', 'kvm', '-cpu', 'host']
      : ['-accel', 'tcg,thread=multi', '-cpu', 'max']),
    ...['-m', String(memoryMiB), '-smp', String(processors)],
    ...['-kernel', machine.vmlinux, '-initrd', machine.initramfs],
    ...['-append', kernelArguments.replaceAll(/\s+/g, ' ')],
    ...['-chardev', `file,id=console,path=${quoted(files.console)}`, '-serial', 'chardev:console'],
    ...[...socket('qmp', files.qmp), '-mon', 'chardev=qmp,mode=control'],
    ...[...socket('agent', files.agent), '-device', 'virtio-serial-pci'],
    ...['-device', 'virtserialport,chardev=agent,name=agent'],
    ...['-device', 'virtio-rng-pci', '-device', 'vmgenid,guid=auto'],
    ...disk('system', machine.system, 'readonly=on'),
    ...disk('modules', machine.modules, 'readonly=on'),
    ...disk('project', machine.project, 'readonly=on'),
    // A killed QEMU loses nothing of what the guest wrote, flushed or not: that is the host's memory.
    // A full disk of ours is an error for the guest, which says so; QEMU would only stop.
    ...disk('data', files.data, 'cache=unsafe,discard=unmap,werror=report,rerror=report'),
    ...['-netdev', `socket,id=net0,mcast=${group},localaddr=127.0.0.1`],
    ...['-device', 'virtio-net-pci,netdev=net0,id=nic0,mac=52:54:00:77:00:00'],
    ...['-pidfile', files.pid],
    ...(savedState === undefined
      ? []
      : ['-incoming', `exec:cat '${savedState.replaceAll("'", "'\\''")}'`]),
  ];
}

export interface StartOptions {
  /** Programs that run the command line given to them, outermost first: a namespace, say. */
  readonly around: readonly string[];
  /** Whether the node outlives the process that starts it. */
  readonly outlives: boolean;
}

/** An empty disk takes no room until it is written. */
export function makeDataDisk(file: string): void {
  closeSync(openSync(file, 'a'));
  truncateSync(file, dataBytes);
}

/**
 * Starts QEMU; it may still end at once for a reason of its own, which `log` has then.
 * @throws BedError when it cannot be started at all
 */
export async function startQemu(
  argv: readonly string[],
  files: NodeFiles,
  options: StartOptions,
): Promise<ProcessId> {
  const fate = options.outlives ? [] : ['setpriv', '--pdeathsig', 'KILL', '--'];
  const [first = program, ...rest] = [...options.around, ...fate, program, ...argv];
  const log = openSync(files.log, 'w');
  try {
    goOn();
    // A group of its own: Ctrl-C in a terminal is for the tool, which ends its nodes itself.
    const child = spawn(first, rest, { stdio: ['ignore', log, log], detached: true });
    await once(child, 'spawn');
    child.unref();
    const id = identify(child.pid ?? 0);
    if (id === undefined) throw new Error(`it ended at once`);
    return id;
  } catch (error) {
    throw new BedError(`${program} cannot be started: ${reasonOf(error)}`);
  } finally {
    closeSync(log);
  }
}
