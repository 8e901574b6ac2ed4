/** Who a certificate belongs to, and whether it may be believed. */
import { X509Certificate } from 'node:crypto';
import { describe } from '../base/errors.js';
import { FormatError } from '../format/shape.js';

export interface Identity {
  readonly cluster: string;
  readonly id: string;
  readonly name: string;
}

export interface Certified extends Identity {
  /** Wall time, in milliseconds since 1970. */
  readonly fromMs: number;
  readonly untilMs: number;
}

/** The one subject alternative name of a node's certificate. */
export const identityUri = ({ cluster, id, name }: Identity): string =>
  `replpage://${cluster}/${id}/${name}`;

const pattern = /^URI:replpage:\/\/([0-9a-f]{16})\/([0-9a-f]{16})\/([A-Za-z0-9_.-]{1,63})$/;

/** PEM or DER. Throws FormatError. */
export function readCertificate(certificate: string | Buffer): X509Certificate {
  try {
    return new X509Certificate(certificate);
  } catch (error) {
    throw new FormatError(`what came is no certificate: ${describe(error)}`);
  }
}

/** Throws FormatError unless it is a certificate of a node. */
export function certified(certificate: X509Certificate): Certified {
  const match = pattern.exec(certificate.subjectAltName ?? '');
  const [, cluster, id, name] = match ?? [];
  if (cluster === undefined || id === undefined || name === undefined) {
    throw new FormatError('the certificate is not one of a replpage node');
  }
  const fromMs = Date.parse(certificate.validFrom);
  const untilMs = Date.parse(certificate.validTo);
  return { cluster, id, name, fromMs, untilMs };
}

/** Throws FormatError with the reason why `certificate` is not of this CA, or not now. */
export function checkIssued(
  certificate: X509Certificate,
  ca: X509Certificate,
  nowMs: number,
): Certified {
  const own = certificate.checkIssued(ca) && certificate.verify(ca.publicKey);
  if (!own) throw new FormatError('the certificate was not issued by this cluster');
  const node = certified(certificate);
  if (nowMs < node.fromMs)
    throw new FormatError('the certificate is not valid yet: see the clocks');
  if (nowMs >= node.untilMs) {
    throw new FormatError(`the certificate of node ${node.name} has expired`);
  }
  return node;
}
