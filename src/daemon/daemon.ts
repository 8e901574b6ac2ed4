/**
 * The composition root: makes the folders, takes the lock, wires native code, groups and API, takes
 * up the groups of the daemon before it, and lets every process go when it is told to end.
 */
import { watchFile, unwatchFile } from 'node:fs';
import { chown, readdir, readFile, rename, rm } from 'node:fs/promises';
import type { Server } from 'node:http';
import { availableParallelism, hostname } from 'node:os';
import { join } from 'node:path';
import { createApiServer } from '../api/server.js';
import { systemClock } from '../base/clock.js';
import { describe, hasCode } from '../base/errors.js';
import { makeFolder } from '../base/folder.js';
import { createLog, type Log } from '../base/log.js';
import { Group } from '../capture/group.js';
import type { Announcement, GroupHost, GroupSpec } from '../capture/group-spec.js';
import { keeperPath, loadNative, pagerPath, type NativeAddon } from '../native/binding.js';
import { askKeeper } from '../native/keeper-status.js';
import { pagingPlanner } from '../paging/planner.js';
import { replpageVersion } from '../base/version.js';
import { nodeFacts } from '../membership/node-facts.js';
import { Cluster } from './cluster.js';
import type { DaemonConfig } from './config.js';
import { EventRing } from './event-ring.js';
import { takeLock } from './lock.js';
import { Moves } from './moves.js';
import { announce, announceFence } from './outsiders.js';
import { bootId, isAlive, readProcess } from './process-facts.js';
import { parseKeeperName, recover, runsPromoted, type FoundKeeper } from './recover.js';
import { KeptReplicas } from './kept-replicas.js';
import { PeerRequests } from './peer-requests.js';
import { ReplicaPeers } from './replica-peers.js';
import { ReplicaRecords } from './replica-records.js';
import { ReplicaTable } from './replica-table.js';
import type { GroupRecord } from './state-file.js';
import { StateStore } from './state-store.js';
import type { PromotedStandby } from '../replica/standbys.js';
import { removeFromStore } from './store-cleanup.js';
import { troubleOfStore } from './store-look.js';
import { takenOver } from './took-over.js';

/** The group whose members may use the socket, where the machine has it. */
const socketGroup = 'replpage';
const groupFile = '/etc/group';
const groupFileLookMs = 5000;
/** Between looks at processes that nobody guards. */
const sweepMs = 2000;
/** Letting go of all processes takes milliseconds; a hung one must not hold the machine's end. */
const shutdownMs = 10_000;

export class Daemon {
  readonly #config: DaemonConfig;
  readonly #log: Log;
  readonly #native: NativeAddon;
  readonly #events: EventRing;
  readonly #table: ReplicaTable;
  readonly #cluster: Cluster;
  readonly #records: ReplicaRecords;
  readonly #kept: KeptReplicas;
  readonly #peers: ReplicaPeers;
  readonly #server: Server;
  readonly #store: StateStore;
  /** About groups that the state file should have had. */
  readonly #lost: string[] = [];
  readonly #locks: { close(): Promise<void> }[] = [];
  #sweep: NodeJS.Timeout | undefined;

  constructor(config: DaemonConfig) {
    this.#config = config;
    this.#log = createLog(config.logLevel);
    this.#native = loadNative();
    this.#events = new EventRing(config.eventsMax, systemClock);
    this.#store = new StateStore({
      path: join(config.stateDir, 'groups.json'),
      clock: systemClock,
      log: this.#log,
      current: () => ({ bootId: bootId(), groups: this.#table.records() }),
    });
    const shared = {
      ...{ config, host: this.#hostBasics(), requests: new PeerRequests() },
      log: this.#log.child({ component: 'peers' }),
      cluster: () => this.#cluster.node,
    };
    const path = join(config.stateDir, 'replicas.json');
    this.#records = new ReplicaRecords({ ...shared, path });
    this.#kept = new KeptReplicas({
      ...{ ...shared, native: this.#native, records: this.#records },
      runsHere: (name) => this.#table.runsHere(name),
      promoted: (promoted) => this.#takeOver(promoted),
    });
    this.#peers = new ReplicaPeers({ ...shared, records: this.#records, kept: this.#kept });
    this.#table = new ReplicaTable({
      config,
      node: hostname(),
      version: replpageVersion,
      native: this.#native,
      events: this.#events,
      host: this.#host(),
      record: () => this.#store.write(),
      peers: this.#peers,
      kept: this.#kept,
      persisted: () => this.#store.settled(),
      warnings: () => [...this.#store.warnings, ...this.#lost, ...this.#cluster.warnings],
    });
    this.#cluster = new Cluster({
      stateDir: config.stateDir,
      storeKeyPath: config.storeKeyPath,
      version: replpageVersion,
      clock: systemClock,
      log: this.#log,
      facts: () => nodeFacts(replpageVersion, this.#table.groups.length),
      note: (node, what, why) => this.#events.add(node, `node ${what}`, why),
      onReplicaMessage: (member, message) => this.#peers.onMessage(member, message),
    });
    this.#server = createApiServer({
      control: this.#table,
      cluster: this.#cluster,
      moves: new Moves({
        groups: this.#table,
        self: () => this.#peers.self,
        targets: () => this.#peers.targets,
        check: (node) => this.#peers.check(node),
      }),
      credentials: (fd) => this.#native.peerCredentials(fd),
      log: this.#log.child({ component: 'api' }),
    });
  }

  /** Throws ERR_FOLDER, ERR_DAEMON_RUNS or a SystemError. */
  async start(): Promise<void> {
    const { runtimeDir, keepersDir, stateDir, spillDir, storeDir, logDir, socketPath } =
      this.#config;
    await makeFolder(runtimeDir, 0o755, 'the runtime folder');
    await makeFolder(stateDir, 0o700, 'the state folder');
    await makeFolder(keepersDir, 0o700, 'the folder of keepers');
    await makeFolder(spillDir, 0o700, 'the folder of spill files');
    await makeFolder(logDir, 0o755, 'the log folder');
    // One that was named may be the place of something that is not mounted: it is never made.
    if (storeDir === join(stateDir, 'store')) await makeFolder(storeDir, 0o700, 'the page store');
    for (const folder of new Set([runtimeDir, stateDir])) {
      this.#locks.push(await takeLock(join(folder, 'lock')));
    }
    await this.#records.start();
    await this.#takeUpGroups();
    void this.#table.addresses.settle();
    await this.#cluster.start();
    await this.#listen(socketPath);
    this.#sweep = setInterval(() => {
      this.#table.sweep();
      this.#records.tick();
    }, sweepMs).unref();
    this.#log.info({ pid: process.pid, socketPath, version: replpageVersion }, 'daemon started');
    void this.#lookAtStore(storeDir);
  }

  /** It may come later, and groups that keep all in RAM need none: told, but no reason to end. */
  async #lookAtStore(storeDir: string): Promise<void> {
    const trouble = await troubleOfStore(storeDir);
    if (trouble === undefined) return;
    this.#log.warn(
      { store: storeDir, trouble },
      `cannot use the page store ${storeDir}: ${trouble}; until it can be used, ` +
        'protect --ram hot, --ram 30% and checkpoint are refused',
    );
  }

  /** Every process is let go and runs on; the state file keeps the groups for the next start. */
  async stop(why: string): Promise<void> {
    this.#log.info({ why }, 'daemon ending');
    clearInterval(this.#sweep);
    unwatchFile(groupFile);
    this.#server.close();
    this.#server.closeAllConnections();
    const left = this.#cluster.stop();
    this.#kept.stop();
    const letGo = Promise.allSettled(this.#table.groups.map((group) => group.shutdown())).then(() =>
      Promise.all([this.#store.close(), left]),
    );
    const waiting = new AbortController();
    const inTime = await Promise.race([
      letGo.then(() => true),
      systemClock.sleep(shutdownMs, waiting.signal).then(() => false),
    ]);
    waiting.abort();
    await rm(this.#config.socketPath, { force: true });
    for (const lock of this.#locks) await lock.close();
    this.#log.info({}, 'daemon ended');
    if (inTime) return;
    // A native thread that hangs would keep us, and the processes traced, for ever. Our death
    // harms none of them, at whatever instant it comes.
    process.stderr.write(
      'replpage: some processes were not let go, or groups not recorded, in time: ending hard\n',
    );
    process.kill(process.pid, 'SIGKILL');
  }

  #hostBasics(): Pick<GroupHost, 'clock' | 'note' | 'limits' | 'paths'> {
    const { runtimeDir, spillDir, freezeDeadlineUs, stagingBytesMax, spillBytesMax } = this.#config;
    return {
      clock: systemClock,
      limits: { freezeDeadlineUs, stagingBytesMax, spillBytesMax },
      paths: { keeperPath, runtimeDir, spillDir },
      note: (group, what, why) => {
        this.#events.add(group, what, why);
        this.#log.info({ component: 'capture', group, what, why }, 'group changed');
      },
    };
  }

  /** A replica of another node runs here now. */
  #takeOver(promoted: PromotedStandby<GroupSpec>): void {
    const host = this.#host();
    const { group, startTime } = takenOver(promoted, host, this.#peers.self);
    const { name } = group.spec;
    const { hostPid, generation, epoch, promotion } = group.core;
    this.#table.add(group, startTime);
    this.#table.addresses.arrived(group.spec);
    host.persist();
    const why = `pid ${promoted.pid} runs on as host pid ${hostPid}`;
    host.note(name, 'promoted', `${why}, of node ${promoted.standby.node.name}`);
    const exact = promotion?.exact === true;
    const reason = `the replica of node ${promoted.standby.node.name} was promoted`;
    host.announce(group.spec, { pid: promoted.pid, hostPid, generation, epoch, exact, reason });
    group.resumePromoted(promoted.keeperSocket);
  }

  #host(): GroupHost {
    const { storeDir, storeKeyPath, storeBytesMax, accessTracker } = this.#config;
    return {
      ...this.#hostBasics(),
      log: this.#log.child({ component: 'capture' }),
      processors: availableParallelism(),
      peers: this.#peers,
      store: {
        pagerPath,
        directory: storeDir,
        keyPath: storeKeyPath,
        bytesMax: storeBytesMax,
        accessTracker,
        // For tests on machines whose only disk is memory.
        allowMemoryFileSystems: process.env['REPLPAGE_STORE_IN_MEMORY'] === 'yes',
      },
      planPaging: ({ ram, coldAfterMs }) => pagingPlanner(ram, coldAfterMs),
      forgetStore: ({ store, name, storeId, owner }) =>
        removeFromStore(store ?? storeDir, name, storeId, store === undefined ? undefined : owner),
      createNative: (options, onEvent) => new this.#native.NativeGroup(options, onEvent),
      askKeeper,
      processAlive: (pid) => isAlive(readProcess(pid)),
      persist: () => {
        this.#store.write();
        void this.#table.addresses.settle();
      },
      announce: (spec, report) => void this.#announce(spec, report),
      announceLeft: (spec, report) => void this.#announceLeft(spec, report),
    };
  }

  async #announceLeft(spec: GroupSpec, report: Announcement): Promise<void> {
    const told = { ...report, node: hostname() };
    for (const problem of await announceFence(spec, told, this.#log)) {
      this.#hostBasics().note(spec.name, 'outsider not told', problem);
    }
  }

  async #announce(spec: GroupSpec, report: Announcement): Promise<void> {
    const told = { ...report, node: hostname() };
    this.#table.told(spec.name, await announce(spec, told, this.#log));
  }

  /** The socket gets its name last: whoever finds it has the rights that it is going to have. */
  async #listen(path: string): Promise<void> {
    const fresh = `${path}.new`;
    await rm(fresh, { force: true });
    const mask = process.umask(0o117);
    try {
      await new Promise<void>((resolve, reject) => {
        this.#server.once('error', reject);
        this.#server.listen(fresh, resolve);
      });
    } finally {
      process.umask(mask);
    }
    await giveToGroup(fresh);
    await rename(fresh, path);
    // The group may be made later.
    watchFile(groupFile, { persistent: false, interval: groupFileLookMs }, () => {
      giveToGroup(path).catch((error: unknown) => {
        this.#log.warn({ reason: describe(error) }, 'socket not given to its group');
      });
    });
  }

  async #takeUpGroups(): Promise<void> {
    const state = await this.#store.load();
    const keepers = await this.#findKeepers();
    if (this.#store.unread) this.#noteLost(keepers);
    for (const record of state?.groups ?? []) {
      // Its end was asked for, and this daemon's was before it came.
      if (record.core.phase.kind === 'removed' && !record.address) continue;
      const mine = keepers.get(record.spec.name) ?? [];
      this.#takeUp(record, state?.bootId === bootId(), mine);
    }
  }

  /** The records are lost, but not what keepers say of themselves. */
  #noteLost(keepers: ReadonlyMap<string, readonly FoundKeeper[]>): void {
    for (const [name, found] of keepers) {
      for (const { status } of found.filter(runsPromoted)) {
        const pid = status.hostPid;
        this.#lost.push(
          `process ${pid} is what was promoted of group ${name}; protect it again with: ` +
            `replpage protect ${pid} --name ${name}`,
        );
      }
    }
  }

  #takeUp(record: GroupRecord, sameBoot: boolean, keepers: readonly FoundKeeper[]): void {
    const { spec, core } = record;
    const facts = readProcess(core.hostPid);
    const primaryAlive = isAlive(facts) && facts.startTime === record.startTime;
    const decision = recover(record, { sameBoot, primaryAlive, keepers });
    const { hostPid, generation } = decision.core;
    const promoted = hostPid !== core.hostPid;
    const { startTime } = promoted ? (readProcess(hostPid) ?? record) : record;
    const group = new Group(spec, this.#host(), decision.core, startTime);
    this.#table.add(group, startTime);
    if (record.address) this.#table.addresses.takeUp(spec.name, record.address);
    const why = `host pid ${hostPid}, generation ${generation}`;
    this.#log.info({ group: spec.name, decision: decision.kind, why }, 'group taken up');
    if (promoted) {
      const pid = readProcess(hostPid)?.ownPid ?? hostPid;
      const { epoch } = decision.core;
      const reason = 'it died while no daemon ran';
      void this.#announce(spec, { pid, hostPid, generation, epoch, exact: false, reason });
    }
    if (decision.kind === 'wait') group.resumePromoted(decision.keeperSocket);
    if (decision.kind !== 'protect') return;
    this.#events.add(spec.name, 'taken up', why);
    group.protect().catch((error: unknown) => {
      this.#log.warn({ group: spec.name, reason: describe(error) }, 'group not protected yet');
    });
  }

  async #findKeepers(): Promise<Map<string, FoundKeeper[]>> {
    const found = new Map<string, FoundKeeper[]>();
    for (const file of await readdir(this.#config.keepersDir)) {
      const parsed = parseKeeperName(file);
      if (parsed === undefined) continue;
      const socket = join(this.#config.keepersDir, file);
      try {
        const status = await askKeeper(socket);
        const keeper = { generation: parsed.generation, socket, status };
        found.set(parsed.name, [...(found.get(parsed.name) ?? []), keeper]);
      } catch (error) {
        // Nobody listens any more: the name is left over from a keeper that is gone.
        if (hasCode(error, 'ECONNREFUSED')) await rm(socket, { force: true });
        else this.#log.warn({ socket, reason: describe(error) }, 'keeper does not answer');
      }
    }
    return found;
  }
}

async function giveToGroup(path: string): Promise<void> {
  const gid = await groupId(socketGroup);
  if (gid !== undefined) await chown(path, 0, gid);
}

async function groupId(name: string): Promise<number | undefined> {
  const text = await readFile(groupFile, 'utf8').catch(() => '');
  const line = text.split('\n').find((entry) => entry.startsWith(`${name}:`));
  return line === undefined ? undefined : Number(line.split(':')[2]);
}

/** Runs until SIGTERM or SIGINT; gives the exit status. A bug detaches everything, then ends it. */
export async function runDaemon(config: DaemonConfig): Promise<number> {
  const daemon = new Daemon(config);
  await daemon.start();
  return new Promise((resolve) => {
    let ending = false;
    const end = (why: string, status: number): void => {
      if (ending) return;
      ending = true;
      void daemon.stop(why).finally(() => resolve(status));
    };
    process.on('SIGTERM', () => end('SIGTERM', 0));
    process.on('SIGINT', () => end('SIGINT', 0));
    process.on('SIGHUP', () => undefined);
    process.on('uncaughtException', (error) => {
      process.stderr.write(`${error.stack ?? String(error)}\n`);
      end(`bug: ${describe(error)}`, 70);
    });
  });
}
