/** Of the package, read from the one place that has it. */
import { readFileSync } from 'node:fs';

const manifest = JSON.parse(
  readFileSync(new URL('../../package.json', import.meta.url), 'utf8'),
) as { readonly version: string };

export const replpageVersion: string = manifest.version;
