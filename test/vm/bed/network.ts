/**
 * The wire between the nodes: a multicast group on the loopback device of a network namespace of
 * their own, so that beds do not hear each other. Without root there is no namespace.
 */
import { existsSync } from 'node:fs';
import { command } from './command.js';

/** The namespace's name follows from the bed's: it is found again without any record. */
export const namespaceOf = (bed: string): string => `replpage-vm-${bed}`;

const isRoot = (): boolean => process.getuid?.() === 0;

export async function makeNetwork(bed: string): Promise<void> {
  if (!isRoot()) return;
  const name = namespaceOf(bed);
  await command('ip', ['netns', 'add', name]);
  await command('ip', ['-n', name, 'link', 'set', 'lo', 'up', 'multicast', 'on']);
  await command('ip', ['-n', name, 'route', 'add', '224.0.0.0/4', 'dev', 'lo']);
}

export async function removeNetwork(bed: string): Promise<void> {
  const name = namespaceOf(bed);
  if (existsSync(`/run/netns/${name}`))
    await command('ip', ['netns', 'delete', name], { cleansUp: true });
}

/** What runs a program in the bed's network. */
export const inNetwork = (bed: string): readonly string[] =>
  isRoot() ? ['ip', 'netns', 'exec', namespaceOf(bed)] : [];
