/** By which address other nodes reach this one. */
import { createServer } from 'node:net';
import { networkInterfaces } from 'node:os';
import { clusterDefaults } from '../api/cluster-schema.js';
import { hasCode, ReplicationError } from '../base/errors.js';

import { parseAddress, whyNot, type Address } from '../transport/peer-tls.js';

/** Throws ReplicationError (ERR_USAGE) when this machine cannot listen there, whatever the port. */
export async function checkListen(given: string | undefined): Promise<void> {
  if (given === undefined) return;
  const { host } = givenAddress('--listen', given, clusterDefaults.port);
  const server = createServer();
  try {
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen({ host, port: 0 }, resolve);
    });
  } catch (error) {
    const none = hasCode(error, 'EADDRNOTAVAIL') || hasCode(error, 'ENOTFOUND');
    const why = none ? `${host} is no address of this machine` : whyNot(error);
    throw new ReplicationError('ERR_USAGE', `--listen: ${why}`, {
      advice: 'give one that "ip address" shows, by which the other nodes reach this one',
    });
  } finally {
    server.close();
  }
}

export function givenAddress(what: string, text: string, portDefault?: number): Address {
  const address = parseAddress(text, portDefault);
  if (address !== undefined) return address;
  throw new ReplicationError('ERR_USAGE', `${what}: "${text}" is no address`, {
    advice: 'write HOST:PORT, and an IPv6 host in brackets',
  });
}

/** What it listens on is what the others are told: no address that stands for all of them. */
export function listenAddress(given: string | undefined, own: string | undefined): Address {
  const advice = 'give the address by which the other nodes reach this one: --listen HOST:PORT';
  if (given === undefined) {
    if (own !== undefined && own !== '') return { host: own, port: clusterDefaults.port };
    throw new ReplicationError('ERR_USAGE', 'this machine has no address of its own', { advice });
  }
  const address = givenAddress('--listen', given, clusterDefaults.port);
  if (address.host !== '0.0.0.0' && address.host !== '::') return address;
  const message = `--listen: others cannot reach ${address.host}`;
  throw new ReplicationError('ERR_USAGE', message, { advice });
}

/** The first that leads out of the machine, IPv4 before IPv6. */
export function ownAddress(): string | undefined {
  const all = Object.values(networkInterfaces()).flatMap((each) => each ?? []);
  const outward = all.filter(
    ({ internal, address }) => !internal && !address.toLowerCase().startsWith('fe80:'),
  );
  return (outward.find(({ family }) => family === 'IPv4') ?? outward[0])?.address;
}
