/**
 * What times every limit of the bed is: nothing here may fail because the host is slow or has other
 * things to do, and whoever waits for what comes never waits for a limit.
 */
const times = 5;

/** A limit, from what it takes on a host at rest. */
export const patiently = (ms: number): number => ms * times;

/** For runs of whole test programs on a node. */
export const runMs = 5 * 3_600_000;
