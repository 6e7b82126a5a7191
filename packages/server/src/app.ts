import { join } from 'node:path'
import { type CreatedKeyItem, type DriverItem, type Info, type KeyCreate, ThawError } from '@thaw/protocol'
import { Bundles } from './bundles/bundles.ts'
import { type Config, defaultSshPort, isLoopback } from './config/index.ts'
import { Artifacts } from './control/artifacts.ts'
import type { BootedSandbox } from './control/booted.ts'
import { Budget } from './control/budget.ts'
import { BuildLogs } from './control/buildlog.ts'
import { Builder } from './control/builds.ts'
import { localCaller } from './control/caller.ts'
import { Drivers } from './control/drivers.ts'
import { Functions } from './control/functions.ts'
import { Idempotency } from './control/idempotency.ts'
import { ImageCatalog } from './control/images.ts'
import { Invocations } from './control/invocations.ts'
import { Invoker } from './control/invoker.ts'
import { Keys } from './control/keys.ts'
import { LogBook } from './control/logbook.ts'
import { Platform } from './control/platform.ts'
import type { PoolKey } from './control/pool.ts'
import { PoolCatalog } from './control/pool-catalog.ts'
import { Pools } from './control/pools.ts'
import { Collector, destroyLeftovers } from './control/reconcile.ts'
import type { AgentSandbox } from './control/sandboxes/agent-sandbox.ts'
import { E2bSandboxes } from './control/sandboxes/e2b.ts'
import { E2bBuilds } from './control/sandboxes/e2b-builds.ts'
import { E2bTemplates } from './control/sandboxes/e2b-templates.ts'
import { Executor } from './control/sandboxes/execute.ts'
import { Hibernation } from './control/sandboxes/hibernation.ts'
import { Lives } from './control/sandboxes/lives.ts'
import { SandboxStarter } from './control/sandboxes/sandbox-starter.ts'
import { Sandboxes } from './control/sandboxes/sandboxes.ts'
import { Snapshots } from './control/sandboxes/snapshots.ts'
import { Sweeper } from './control/sandboxes/sweeper.ts'
import { Scheduler } from './control/scheduler.ts'
import { SecretCatalog } from './control/secret-catalog.ts'
import { Secrets } from './control/secrets.ts'
import { openHostKey } from './control/ssh-host-key.ts'
import { SshKeys } from './control/ssh-keys.ts'
import { type RuntimePoolKey, Starter } from './control/starter.ts'
import { VersionSnapshots } from './control/version-snapshots.ts'
import { openDataDir } from './data-dir.ts'
import { DockerDriver } from './drivers/docker/index.ts'
import type { Driver } from './drivers/driver.ts'
import { OciDriver } from './drivers/oci/index.ts'
import { ProcessDriver } from './drivers/process/index.ts'
import { startGateway } from './gateway/server.ts'
import { startSsh } from './gateway/ssh/start.ts'
import { Images } from './images/images.ts'
import { builtAgent, stageAgent, stageRuntimes } from './installation.ts'
import { SnapshotFiles } from './snapshots/snapshot-files.ts'
import { openStore } from './store/sqlite/open.ts'
import { createLogger } from './telemetry/log.ts'
import { createMetrics } from './telemetry/metrics.ts'
import { version } from './version.ts'

export interface App {
  url: string
  /** What GET /v1/info says to an admin. */
  info(): Promise<Info>
  /** Drains, stops, and leaves nothing behind. Idempotent. */
  close(): Promise<void>
}

/** Wires all parts and starts them: the only place that knows every one. `onProgress` gets lines for people. */
export async function startApp(config: Config, onProgress: (line: string) => void = () => {}): Promise<App> {
  const log = createLogger({ level: config.log_level })
  const dataDir = openDataDir(config.data_dir)
  const metrics = createMetrics()
  const closers: (() => Promise<unknown> | unknown)[] = []
  const closeAll = async () => {
    for (const close of closers.reverse().splice(0)) {
      try {
        await close()
      } catch (error) {
        log.error({ err: error }, 'a part did not close in order')
      }
    }
  }
  try {
    const store = await openStore({ dataDir, log, onRecordsDropped: (rows) => metrics.recordsDropped(rows) })
    closers.push(() => store.close())

    const keys = await Keys.open(store.keys, { auth: config.auth, loopback: isLoopback(config.host), dataDir })
    closers.push(() => keys.close())
    if (keys.lockedOut)
      log.warn({ data_dir: dataDir }, 'requests need an API key, and there is none: stop, and make one with `thaw key create --data-dir`')
    const idempotency = new Idempotency(store.idempotency, { retentionMs: config.retention.idempotency_ms })
    closers.push(() => idempotency.close())
    const secrets = await Secrets.open(store.secrets, dataDir)
    const madeDrivers = createDrivers(dataDir, config)
    const drivers = new Drivers(madeDrivers.all, config.driver)
    for (const driver of drivers.all()) closers.push(() => driver.close())
    await destroyLeftovers(drivers, log, await Sandboxes.known(store.sandboxes))
    const chosen = await drivers.defaultKind()
    log.info({ driver: chosen }, 'driver chosen')
    if (chosen === 'process')
      log.warn('the process driver isolates nothing: run only code that you trust (thaw doctor says what is missing for a stronger one)')

    const { limits } = config
    const images = await Images.open({
      imagesDir: config.images_dir,
      insecureRegistries: config.registries.insecure,
      registryAuthFile: config.registries.auth_file,
    })
    const bundles = await Bundles.open({
      dataDir,
      limits: {
        maxPackedBytes: limits.max_archive_bytes,
        maxUnpackedBytes: limits.max_unpacked_bytes,
        maxEntries: limits.max_archive_entries,
      },
    })
    const runtimesDir = await stageRuntimes(dataDir)
    const builder = new Builder({
      dataDir,
      runtimesDir,
      timeoutMs: limits.build_timeout_ms,
      env: config.builds.env,
      caFile: config.builds.ca_file,
    })
    const artifacts = new Artifacts(dataDir, bundles, builder)
    const logBook = new LogBook(store.records)
    const budget = new Budget({ maxInstances: limits.max_instances, memoryMib: limits.memory_mib })
    const snapshotFiles = await SnapshotFiles.open(dataDir, await Snapshots.known(store.snapshots))
    const versionSnapshots: VersionSnapshots = new VersionSnapshots(
      { autoInitMs: config.snapshots.auto_init_ms, runtimesDir },
      {
        store: store.snapshots,
        files: snapshotFiles,
        drivers,
        budget,
        makeRoom: () => pools.makeRoom(),
        startBare: (of, signal) => starter.startBare(of, signal),
        log,
      },
    )
    // The starter takes from the pools what it has started for them.
    const starter: Starter = new Starter(
      { runtimesDir, startTimeoutMs: limits.start_timeout_ms },
      {
        drivers,
        images,
        artifacts,
        secrets,
        // Pools hold what they were started with.
        pools: { take: (key) => pools.take(key) as BootedSandbox | undefined },
        snapshots: versionSnapshots,
        log: (of) => (line) => logBook.add(of, line),
        onFallback: (of, method, error) => {
          metrics.bootFallback(method, error instanceof ThawError ? error.code : 'other')
          log.warn(
            { err: error, function: of.functionName, version: of.number, boot_method: method },
            'boot method failed, the next one is used',
          )
        },
      },
    )
    const sandboxStarter: SandboxStarter = new SandboxStarter({
      drivers,
      images,
      pools: { take: (key) => pools.take(key) as AgentSandbox | undefined },
      agents: stageAgent(dataDir),
      startTimeoutMs: limits.start_timeout_ms,
      onFallback: (method, error) => {
        metrics.bootFallback(method, error instanceof ThawError ? error.code : 'other')
        log.warn({ err: error, boot_method: method }, 'boot method of a sandbox failed, the next one is used')
      },
    })
    const pools: Pools = new Pools(
      { size: config.pools.size, maxSize: config.pools.max_size, demandMs: config.pools.demand_ms },
      {
        budget,
        log,
        start: (key, signal) =>
          isAgentPool(key) ? sandboxStarter.startForPool(key, signal) : starter.startForPool(key as RuntimePoolKey, signal),
      },
    )
    closers.push(() => pools.close())
    const scheduler = new Scheduler(
      { queueLength: limits.queue_length, queueTimeoutMs: limits.queue_timeout_ms },
      { budget, pools, start: (of, signal) => starter.start(of, signal), log, metrics },
    )
    closers.push(() => scheduler.close())
    const invoker = new Invoker(
      { maxPayloadBytes: limits.max_payload_bytes, maxLogBytes: limits.max_log_bytes_per_invocation },
      { scheduler, records: store.records, logBook, metrics },
    )
    const functions = new Functions({
      store,
      bundles,
      artifacts,
      drivers,
      starter,
      scheduler,
      invoker,
      buildLogs: new BuildLogs(dataDir),
      pools,
      snapshots: versionSnapshots,
      budget,
      secrets,
      log,
    })
    closers.push(() => functions.close())
    closers.push(() => versionSnapshots.close())
    const lives = new Lives({
      store: store.sandboxes,
      drivers,
      budget,
      hibernation: new Hibernation({ store: store.snapshots, files: snapshotFiles, starter: sandboxStarter, log }),
      starter: sandboxStarter,
      makeRoom: () => pools.makeRoom(),
      log,
    })
    closers.push(() => lives.close())
    await lives.open()
    const sweeper = new Sweeper(
      { hibernateAfterMs: config.sandboxes.hibernate_after_ms, archiveAfterMs: config.sandboxes.archive_after_ms },
      lives,
      log,
    )
    closers.push(() => sweeper.close())
    const sandboxes = new Sandboxes({ store: store.sandboxes, lives, starter: sandboxStarter })
    const snapshots = new Snapshots({
      store: store.snapshots,
      sandboxStore: store.sandboxes,
      files: snapshotFiles,
      sandboxes,
      lives,
      starter: sandboxStarter,
      log,
    })
    const sshKeys = await SshKeys.open({
      store: store.sshKeys,
      sandboxId: async (caller, name) => (await sandboxes.get(caller, name)).id,
      connectionsPerKey: config.ssh.connections_per_key,
    })
    closers.push(() => sshKeys.close())
    const catalog = new ImageCatalog(
      images,
      async (tenant) =>
        new Set([...(await functions.references(tenant)).imageDigests, ...(tenant === undefined ? sandboxes.imageDigests() : [])]),
      { builder: madeDrivers.docker, maxContextBytes: limits.max_unpacked_bytes },
    )
    const platform = new Platform(drivers, {
      version,
      data_dir: dataDir,
      limits: { max_payload_bytes: limits.max_payload_bytes, max_archive_bytes: limits.max_archive_bytes },
    })
    await versionSnapshots.open()
    await functions.open()
    await versionSnapshots.settle((await functions.references()).versionIds, functions.activeVersions())
    const collector = new Collector({
      functions,
      artifacts,
      images: catalog,
      records: store.records,
      idempotency,
      sandboxes,
      snapshots,
      results: store.results,
      versionSnapshots,
      retention: {
        invocationsMs: config.retention.invocations_ms,
        logsMs: config.retention.logs_ms,
        sandboxesMs: config.retention.sandboxes_ms,
        snapshotsMs: config.retention.snapshots_ms,
        imagesMs: config.retention.images_ms,
        versionSnapshotsMs: config.retention.version_snapshots_ms,
      },
      log,
    })
    closers.push(() => collector.close())
    void collector.run()

    const e2b = new E2bSandboxes({ sandboxes, snapshots, lives })
    const e2bTemplates = new E2bTemplates(store.snapshots)
    const e2bBuilds = new E2bBuilds({
      e2b,
      templates: e2bTemplates,
      sandboxes,
      snapshots,
      folder: join(dataDir, 'e2b-uploads'),
      maxArchiveBytes: limits.max_archive_bytes,
    })
    closers.push(() => e2bBuilds.close())
    await e2bBuilds.open()

    const gateway = await startGateway(
      {
        host: config.host,
        port: config.port,
        maxPayloadBytes: limits.max_payload_bytes,
        maxArchiveBytes: limits.max_archive_bytes,
        headerTimeoutMs: limits.header_timeout_ms,
        requestTimeoutMs: limits.request_timeout_ms,
        maxConnections: limits.max_connections,
        websocket: {
          idleMs: limits.websocket_idle_ms,
          maxMessageBytes: limits.websocket_max_message_bytes,
          stallMs: limits.websocket_stall_ms,
        },
        sandboxDomain: config.sandboxes.domain,
        rateLimit: { requestsPerSecond: limits.requests_per_second, requestBurst: limits.request_burst },
      },
      {
        functions,
        invocations: new Invocations(store.records, invoker, logBook),
        invoker,
        images: catalog,
        platform,
        pools: new PoolCatalog(pools, drivers, images, functions),
        secrets: new SecretCatalog(secrets, store.secrets, functions),
        sandboxes,
        snapshots,
        executor: new Executor({
          sandboxes,
          snapshots,
          results: store.results,
          imageDigest: async (request, signal) => (await sandboxStarter.plan(request, signal)).image.digest,
        }),
        e2b,
        e2bTemplates,
        e2bBuilds,
        keys,
        sshKeys,
        idempotency,
        metrics,
        log,
      },
    )
    closers.push(() => gateway.close())
    const ssh = config.ssh.enabled
      ? await startSsh({ ...config.ssh, defaultPort: defaultSshPort, hostKey: openHostKey(dataDir) }, { keys: sshKeys, sandboxes, log })
      : null
    if (ssh !== null) closers.push(() => ssh.close())
    platform.ssh = ssh?.info ?? null
    metrics.observeSsh(() => ssh?.connections ?? 0)
    platform.ready = true
    log.info({ url: gateway.url, data_dir: dataDir }, 'listening')
    onProgress(`listening on ${gateway.url}`)

    let closing: Promise<void> | undefined
    return {
      url: gateway.url,
      info: () => platform.info(localCaller),
      close: () => {
        closing ??= (async () => {
          platform.ready = false
          log.info('shutting down')
          gateway.stopListening()
          await invoker.drain(config.shutdown.drain_ms)
          await closeAll()
        })()
        return closing
      },
    }
  } catch (error) {
    await closeAll()
    throw error
  }
}

/** Makes a key in the data directory of a server that does not run: for whoever has none yet, or none any more. */
export async function createKeyOffline(config: Config, input: KeyCreate): Promise<CreatedKeyItem> {
  const dataDir = openDataDir(config.data_dir)
  const store = await openStore({ dataDir, log: createLogger({ level: 'silent' }) })
  try {
    const keys = await Keys.open(store.keys, { auth: 'auto', loopback: true, dataDir })
    keys.close()
    return await keys.create(localCaller, input)
  } finally {
    await store.close()
  }
}

/** The drivers of this machine, with what each finds here. Starts nothing that stays. */
export async function probeDrivers(dataDir: string, config: Config): Promise<DriverItem[]> {
  return new Drivers(createDrivers(dataDir, config).all, 'auto').describe()
}

function isAgentPool(key: PoolKey): boolean {
  return key.folder === 'agent'
}

function createDrivers(dataDir: string, config: Config): { all: Driver[]; docker: DockerDriver } {
  const { host, cert_dir: certDir } = config.docker
  const docker = new DockerDriver({ dataDir, host, certDir, agent: builtAgent() })
  const { storage_mib: storageMib, disk_mib: diskMib } = config.sandboxes
  const oci = new OciDriver({ dataDir, engine: config.oci.engine, storageMib, diskMib })
  return { all: [oci, docker, new ProcessDriver({ dataDir })], docker }
}
