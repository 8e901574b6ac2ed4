/**
 * What is wrong with protecting a process, found before anything touches it: a clear error for
 * each. What is inside the process is looked at by native code.
 */
import type { Caller } from '../api/server.js';
import { ReplicationError } from '../base/errors.js';
import type { TraceVerdict } from '../native/binding.js';
import {
  ancestry,
  daemonRuntimeDir,
  hasLostMainThread,
  isAlive,
  readProcess,
  serviceOf,
  type ProcessFacts,
  type SharedFile,
} from './process-facts.js';

export interface TargetRules {
  readonly mayTrace: (caller: Caller, pid: number) => TraceVerdict;
  readonly keeperPath: string;
  readonly daemonPid: number;
  /** Name of the group whose root this process is. */
  readonly groupOf: (pid: number) => string | undefined;
}

/** Throws ERR_NO_PROCESS, ERR_DENIED, ERR_PROTECTED_ALREADY or ERR_REFUSED. */
export function checkTarget(rules: TargetRules, caller: Caller, pid: number): ProcessFacts {
  const doing = `cannot protect process ${pid}`;
  const facts = readProcess(pid);
  if (!isAlive(facts)) {
    const what = facts === undefined ? 'there is no such process' : 'it has ended already';
    throw new ReplicationError('ERR_NO_PROCESS', `${doing}: ${what}`);
  }
  // Before its rights: of such a process the kernel does not tell whether it may be traced.
  if (hasLostMainThread(facts)) {
    const why =
      'its main thread has ended (pthread_exit in main) while others run on, and such a process ' +
      'cannot be rebuilt yet';
    refuse(facts, doing, 'process without a main thread', why);
  }
  // Nor has a thread a pidfd.
  if (facts.threadGroup !== facts.pid) {
    refuse(facts, doing, 'thread', `it is a thread of process ${facts.threadGroup}: protect that`);
  }
  const verdict = rules.mayTrace(caller, pid);
  if (!verdict.allowed) {
    throw new ReplicationError(
      'ERR_DENIED',
      `${doing}: user ${caller.uid} may not trace it${verdict.reason ? ` (${verdict.reason})` : ''}`,
      {
        advice:
          caller.uid === 0
            ? 'it has rights that this root lacks (capabilities, a user namespace); see replpage doctor'
            : 'protect it as its own user or as root',
      },
    );
  }
  checkKind(rules, facts, doing);
  checkKinship(rules, caller, pid, doing);
  checkTracer(rules, facts, doing);
  return facts;
}

function refuse(facts: ProcessFacts, doing: string, kind: string, why: string): never {
  throw new ReplicationError('ERR_REFUSED', `${doing}: ${why}`, {
    refusals: [{ pid: facts.pid, object: `process ${facts.pid}`, kind, why }],
  });
}

function checkKind(rules: TargetRules, facts: ProcessFacts, doing: string): void {
  if (facts.kernelThread) {
    refuse(facts, doing, 'kernel thread', `${facts.name} is a kernel thread`);
  }
  if (facts.executable === rules.keeperPath) {
    refuse(facts, doing, 'replpage', 'it is part of replpage');
  }
}

function checkKinship(rules: TargetRules, caller: Caller, pid: number, doing: string): void {
  const protectedBy = ancestry(pid).map((one) => rules.groupOf(one));
  const group = protectedBy.find((name) => name !== undefined);
  if (group !== undefined) {
    throw new ReplicationError('ERR_PROTECTED_ALREADY', `${doing}: group ${group} covers it`, {
      advice: `replpage unprotect ${group} first`,
    });
  }
  // A frozen tree must never hold who freezes it or who waits for that.
  if (ancestry(rules.daemonPid).includes(pid)) {
    const why = 'the daemon itself is in its process tree';
    throw new ReplicationError('ERR_REFUSED', `${doing}: ${why}`, {
      refusals: [{ pid, object: `process ${pid}`, kind: 'replpage', why }],
    });
  }
  if (ancestry(caller.pid).includes(pid)) {
    const why = 'this very command is in its process tree';
    throw new ReplicationError('ERR_REFUSED', `${doing}: ${why}`, {
      advice: 'protect it from another session',
      refusals: [{ pid, object: `process ${pid}`, kind: 'replpage', why }],
    });
  }
}

function checkTracer(rules: TargetRules, facts: ProcessFacts, doing: string): void {
  if (facts.tracer === 0) return;
  // The kernel names the thread that traces.
  const tracing = readProcess(facts.tracer);
  const tracerPid = tracing?.threadGroup ?? facts.tracer;
  if (tracerPid === rules.daemonPid) {
    throw new ReplicationError('ERR_PROTECTED_ALREADY', `${doing}: it is in a protected group`, {
      advice: 'where protection of it was just given up, try again in a moment',
    });
  }
  const runtimeDir = daemonRuntimeDir(tracerPid);
  if (runtimeDir !== undefined) {
    const message = `${doing}: another replpage daemon (pid ${tracerPid}) protects it`;
    throw new ReplicationError('ERR_PROTECTED_ALREADY', message, {
      advice: `see replpage status --runtime-dir ${runtimeDir}, and unprotect it there first`,
    });
  }
  if (tracing?.executable === rules.keeperPath) {
    refuse(facts, doing, 'replpage', 'it is a replica, or was promoted and is still being filled');
  }
  const tracer = tracing?.name ?? 'a process';
  throw new ReplicationError(
    'ERR_REFUSED',
    `${doing}: ${tracer} (pid ${tracerPid}) traces it already`,
    {
      advice: 'a process has one tracer at a time: end that debugger or tracer first',
      refusals: [
        {
          pid: facts.pid,
          object: `process ${facts.pid}`,
          kind: 'tracer',
          why: `traced by ${tracer} (pid ${tracerPid})`,
        },
      ],
    },
  );
}

const filesNamed = 3;

/** About the file rule, which a user learns of too late otherwise. */
export function fileRuleWarnings(
  written: readonly string[],
  shared: readonly SharedFile[] = [],
): readonly string[] {
  const onDisk = shared.filter(({ inMemory }) => !inMemory).map(({ path }) => path);
  const inMemory = shared.filter((file) => file.inMemory).map(({ path }) => path);
  const named = [...new Set([...written, ...onDisk])];
  const warnings: string[] = [];
  if (named.length > 0) {
    warnings.push(
      `it has ${someOf(named)} open for writing: after a crash it ` +
        `is not promoted when such a file has changed since the last epoch, unless --files keep is ` +
        `given; after a kill it always is`,
    );
  }
  if (inMemory.length > 0) {
    warnings.push(
      `it shares memory through ${someOf(inMemory)}, and nobody can tell whether that has changed ` +
        `since the last epoch: after a crash it is not promoted, unless --files keep is given; ` +
        `after a kill it always is`,
    );
  }
  return warnings;
}

function someOf(files: readonly string[]): string {
  const more = files.length > filesNamed ? ` and ${files.length - filesNamed} more` : '';
  return `${files.slice(0, filesNamed).join(', ')}${more}`;
}

/** What the user should know although it can be protected. */
export function warningsFor(facts: ProcessFacts): readonly string[] {
  const unit = serviceOf(facts);
  if (unit === undefined) return [];
  return [
    `process ${facts.pid} is the main process of ${unit}: when it dies, the service manager sees ` +
      `the unit end, and may start a second one. Before relying on the replica give the unit ` +
      `Restart=no, KillMode=process and RemainAfterExit=yes (systemctl edit ${unit}), and follow ` +
      `the promoted process with --pidfile or --on-promote. What was promoted is in a control ` +
      `group of its own: the unit's limits and systemctl stop no longer reach it.`,
  ];
}
