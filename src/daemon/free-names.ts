/** Names and numbers for new groups, that nothing else has. */
import { readdirSync } from 'node:fs';
import { ReplicationError } from '../base/errors.js';
import { socketPathBytesMax } from '../base/paths.js';
import { parseKeeperName } from './recover.js';

/** Promotions to come lengthen the name of a keeper's socket. */
const roomFor = 1_000_000;

/** After the program, with a number where that is needed. */
export function freeName(program: string, isFree: (name: string) => boolean): string {
  const plain = program.replace(/[^A-Za-z0-9_.-]/g, '-').replace(/^[^A-Za-z0-9]+/, '');
  const base = plain === '' ? 'process' : plain.slice(0, 40);
  for (let i = 1; ; i++) {
    const name = i === 1 ? base : `${base}-${i}`;
    if (isFree(name)) return name;
  }
}

/**
 * A keeper may still run what an earlier group of that name has promoted: its socket and its
 * control group carry a generation that is never given again. `previous`: of the group before.
 * Throws ERR_BAD_REQUEST where a socket could not have such a name.
 */
export function freeGeneration(keepersDir: string, name: string, previous: number): number {
  const taken = readdirSync(keepersDir).map(parseKeeperName);
  const ofName = taken.filter((keeper) => keeper?.name === name);
  const used = ofName.map((keeper) => keeper?.generation ?? 0);
  const generation = Math.max(previous, ...used) + 1;
  const socket = `${keepersDir}/${name}.${generation + roomFor}.sock`;
  const tooMany = Buffer.byteLength(socket) - socketPathBytesMax;
  if (tooMany <= 0) return generation;
  throw new ReplicationError('ERR_BAD_REQUEST', `--name: ${name} is too long for a socket`, {
    advice: `take away ${tooMany} characters, here or from the daemon's --runtime-dir`,
  });
}
