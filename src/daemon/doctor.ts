/** Looks at the machine without touching anything that is protected. */
import { accessSync, constants } from 'node:fs';
import { describe } from '../base/errors.js';
import { keeperPath, loadNative } from '../native/binding.js';

export interface DoctorCheck {
  readonly name: string;
  readonly value: boolean | string | number;
  /** null: for information. */
  readonly ok: boolean | null;
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
    ...kernelChecks(),
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

function kernelChecks(): readonly DoctorCheck[] {
  try {
    const features = loadNative().probeKernel();
    const tracked = features['uffdWp'] === true || features['softDirty'] === true;
    return [
      { name: 'addon', value: true, ok: true, meaning: 'loaded' },
      {
        name: 'write tracking',
        value: tracked,
        ok: tracked,
        meaning: 'one of uffd-wp and soft-dirty is needed to find what was written',
      },
      ...Object.entries(features).map(([name, value]) => ({
        name: `kernel: ${name}`,
        value,
        ok: null,
        meaning: '',
      })),
    ];
  } catch (error) {
    return [{ name: 'addon', value: describe(error), ok: false, meaning: 'npm run build:native' }];
  }
}
