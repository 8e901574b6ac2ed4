/** Looks at the machine without touching anything that is protected. */
import { accessSync, constants } from 'node:fs';
import { describe } from '../base/errors.js';
import { keeperPath, loadNative } from '../native/binding.js';

export interface DoctorCheck {
  readonly name: string;
  readonly value: boolean | string | number;
  /** null: for information. */
  readonly ok: boolean | null;
  /** Protecting works without it, but not as well. */
  readonly degraded?: boolean;
  readonly meaning: string;
}

export interface DoctorReport {
  readonly ok: boolean;
  readonly checks: readonly DoctorCheck[];
}

export function examine(daemon: string): DoctorReport {
  const root = process.getuid?.() === 0;
  const checks: DoctorCheck[] = [
    { name: 'daemon', value: daemon, ok: null, meaning: 'protect starts one where none runs' },
    {
      name: 'root',
      value: root,
      ok: root ? true : null,
      meaning: root ? 'the daemon can run' : 'the daemon needs it, and some checks here do too',
    },
    keeperCheck(),
    ...kernelChecks(root),
  ];
  return { ok: checks.every((check) => check.ok !== false), checks };
}

function keeperCheck(): DoctorCheck {
  const meaning = 'keeps the replica; npm run build:native makes it';
  try {
    accessSync(keeperPath, constants.X_OK);
    return { name: 'keeper', value: keeperPath, ok: true, meaning };
  } catch (error) {
    return { name: 'keeper', value: describe(error), ok: false, meaning };
  }
}

interface Feature {
  readonly meaning: string;
  /** Whether a value makes protecting impossible; without it the feature is for information. */
  readonly impossible?: (value: unknown) => boolean;
  /** Whether a value makes it work less well. */
  readonly degraded?: (value: unknown) => boolean;
  /** Only root can find out. */
  readonly asRoot?: boolean;
}

const features: Readonly<Record<string, Feature>> = {
  release: { meaning: 'of this kernel; nothing is decided by it' },
  uffdWp: { meaning: 'tracks written pages with userfaultfd and PAGEMAP_SCAN: the faster way' },
  softDirty: { meaning: 'tracks written pages with soft-dirty bits' },
  pidfdGetfd: {
    meaning: 'hands descriptors over from the dying process; needed',
    impossible: (value) => value === false,
  },
  accessTracker: {
    meaning:
      'finds which pages were touched, for --ram hot and --ram 30%; write-recency sees writes ' +
      'alone, so that what is only read counts as cold',
    asRoot: true,
    degraded: (value) => value === 'write-recency',
  },
  pagemapScan: { meaning: 'finds and re-arms written pages in one call' },
  setTid: {
    meaning: 'gives a replica the ids of its primary; needed',
    asRoot: true,
    impossible: (value) => value === false,
  },
  rseqConfiguration: {
    meaning: 'reads where a thread registered its restartable sequences; needed',
    impossible: (value) => value === false,
  },
  kernelReader: {
    meaning:
      'reads by bpf what else only the process itself can tell; without it that is asked for ' +
      'once a second, and what changed since then is lost by a kill',
  },
  bpf: { meaning: 'with btf and a kernel that lets us find a task: see kernelReader' },
  btf: { meaning: 'the kernel describes its own structures; see kernelReader' },
  damonInUse: { meaning: 'a kdamond runs that is not ours: its interface is left alone' },
  tcpRepair: { meaning: 'moves established connections to another machine; not needed on one' },
  idleBitmap: { meaning: 'tells which pages were touched, for --ram; see accessTracker' },
  cgroup: { meaning: 'where promoted processes get a group of their own' },
  yamaScope: {
    meaning: 'kernel.yama.ptrace_scope: 3 lets nobody trace',
    impossible: (value) => value === 3,
  },
  capSysPtrace: { meaning: 'traces processes; the daemon needs it' },
  capSysAdmin: { meaning: 'makes namespaces; the daemon needs it' },
  capSysResource: {
    meaning:
      'CAP_SYS_RESOURCE: without it a process with higher resource limits than the daemon is ' +
      "refused, and the OOM killer may choose a replica's holder",
    asRoot: true,
    degraded: (value) => value === false,
  },
  capNetAdmin: { meaning: 'keeps options of sockets that only an administrator may set' },
};

function kernelChecks(root: boolean): readonly DoctorCheck[] {
  try {
    const found = loadNative().probeKernel();
    const tracked = found['uffdWp'] === true || found['softDirty'] === true;
    return [
      { name: 'addon', value: true, ok: true, meaning: 'loaded' },
      {
        name: 'write tracking',
        value: tracked,
        ok: tracked,
        meaning: 'one of uffdWp and softDirty is needed to find what was written',
      },
      ...Object.entries(found).map(([name, value]) => featureCheck(name, value, root)),
    ];
  } catch (error) {
    const [first = ''] = describe(error).split('\n');
    return [{ name: 'addon', value: first, ok: false, meaning: 'npm run build:native makes it' }];
  }
}

export function featureCheck(
  name: string,
  value: boolean | string | number,
  root: boolean,
): DoctorCheck {
  const feature = features[name];
  const meaning = feature?.meaning ?? '';
  const check = { name: `kernel: ${name}`, value, meaning };
  const ok = feature?.impossible?.(value) === true ? false : null;
  const less = feature?.degraded?.(value) === true;
  if (feature?.asRoot === true && !root && (ok === false || less)) {
    return { ...check, ok: null, meaning: `${meaning} (only root can tell)` };
  }
  return less ? { ...check, ok, degraded: true } : { ...check, ok };
}
