import { createHash, randomBytes } from 'node:crypto'
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { networkInterfaces } from 'node:os'
import { join } from 'node:path'
import { ThawError } from '@thaw/protocol'
import { runCommand } from '../command.ts'
import { egressFilter, hostResolvers } from '../egress.ts'

/**
 * Network mode `egress`: each sandbox gets a network namespace with one link to the host, its own /30 of
 * 100.64.0.0/10, and addresses translated on the way out. What it may reach is the public internet: this host, its
 * neighbours, other sandboxes and every private, link-local (cloud metadata) or reserved range are dropped. DNS goes to
 * the resolvers of the host and nowhere else inside those ranges. IPv6 is not offered.
 *
 * All names begin with a tag that is made from the data directory, so that servers do not meet and that what a killed
 * server left can be told apart and removed.
 */

const poolBase = (100 << 24) | (64 << 16)
/** /30 networks of one server. 1024 servers can share the /10. */
const networksPerServer = 1024

const namespaceFolder = '/run/netns'

export interface PreparedNetwork {
  /** Path of the namespace. */
  path: string
  /** To be kept, so that another server can `adopt` it. */
  made: Made
}

/** A namespace with its link and addresses. */
export interface Made {
  name: string
  network: number
}

/** Namespaces kept ready: making one takes three programs of the host, and a cold start waits for that. */
const spareCount = 2
/** The start that took the last one comes first. */
const refillDelayMs = 30

export class EgressNetwork {
  readonly #tag: string
  readonly #free: number[]
  readonly #held = new Map<string, Made>()
  readonly #spares: Made[] = []
  #refilling: Promise<void> | undefined
  #closed = false
  readonly #resolvers: string[]
  #ready: Promise<void> | undefined

  /** @param dataDir makes the tag. */
  constructor(dataDir: string) {
    this.#tag = createHash('sha256').update(dataDir).digest('hex').slice(0, 6)
    this.#resolvers = hostResolvers()
    const first = freeServerSlot(Number.parseInt(this.#tag, 16) % 1024)
    this.#free = Array.from({ length: networksPerServer }, (_, index) => first + (networksPerServer - 1 - index))
  }

  /** What a sandbox's /etc/resolv.conf says. */
  get resolvConf(): string {
    return `${this.#resolvers.map((address) => `nameserver ${address}`).join('\n')}\n`
  }

  /** Gives a sandbox a namespace; nothing is left when it rejects. */
  async create(id: string): Promise<PreparedNetwork> {
    this.#closed = false
    await this.#setUp()
    const made = this.#spares.pop() ?? (await this.#make())
    this.#held.set(id, made)
    this.#refill()
    return { path: join(namespaceFolder, made.name), made }
  }

  /** The namespace of a sandbox that an earlier server made and that goes on. */
  adopt(id: string, made: Made): void {
    const index = this.#free.indexOf(made.network)
    if (index >= 0) this.#free.splice(index, 1)
    this.#held.set(id, made)
  }

  /** Removes the namespace of a sandbox, and with it the link. Idempotent. Takes what `list` of an earlier server named, too. */
  async remove(id: string): Promise<void> {
    const made = this.#held.get(id)
    this.#held.delete(id)
    if (made !== undefined) await this.#unmake(made)
    else if (existsSync(join(namespaceFolder, this.#prefix + id))) await runCommand('ip', ['netns', 'del', this.#prefix + id])
  }

  async #make(): Promise<Made> {
    const network = this.#free.pop()
    if (network === undefined) throw new ThawError('driver_failed', 'No network address is left for another sandbox.')
    const made = { name: `${this.#prefix}${randomBytes(6).toString('hex')}`, network }
    const link = this.#link(network)
    const [outer, inner] = addresses(network)
    try {
      await runCommand('sh', ['-c', makeNetwork, 'thaw-network', made.name, link, outer, inner])
      return made
    } catch (error) {
      await this.#unmake(made)
      throw error
    }
  }

  async #unmake({ name, network }: Made): Promise<void> {
    if (existsSync(join(namespaceFolder, name))) {
      // The kernel removes the link some time after its namespace; a fast next sandbox may take the number before that.
      await runCommand('sh', ['-c', 'ip link del "$2" 2>/dev/null; ip netns del "$1"', 'thaw-network', name, this.#link(network)])
    }
    this.#free.push(network)
  }

  /** Makes spares one after the other, in the background. One that cannot be made is made, or fails, when it is needed. */
  #refill(): void {
    if (this.#refilling !== undefined || this.#closed || this.#spares.length >= spareCount) return
    this.#refilling = new Promise<void>((resolve) => setTimeout(resolve, refillDelayMs).unref())
      .then(async () => {
        if (!this.#closed) this.#spares.push(await this.#make())
      })
      .catch(() => {
        this.#closed = true
      })
      .finally(() => {
        this.#refilling = undefined
        this.#refill()
      })
  }

  /** What is left of an earlier server: the names that its namespaces have behind the tag. */
  list(): string[] {
    const ours = new Set([...this.#held.values(), ...this.#spares].map((made) => made.name))
    return existsSync(namespaceFolder)
      ? readdirSync(namespaceFolder)
          .filter((name) => name.startsWith(this.#prefix) && !ours.has(name))
          .map((name) => name.slice(this.#prefix.length))
      : []
  }

  /** Removes the namespaces that nobody uses yet. */
  async dropSpares(): Promise<void> {
    this.#closed = true
    await this.#refilling
    for (const made of this.#spares.splice(0)) await this.#unmake(made)
  }

  /** Removes the packet filter of this server. */
  async close(): Promise<void> {
    if (this.#ready === undefined) return
    await this.#ready.catch(() => undefined)
    this.#ready = undefined
    await runCommand('nft', ['delete', 'table', 'inet', this.#table]).catch(() => undefined)
  }

  get #prefix(): string {
    return `thaw-${this.#tag}-`
  }

  get #table(): string {
    return `thaw_${this.#tag}`
  }

  /** An interface name has at most 15 characters. */
  #link(network: number): string {
    return `th${this.#tag}${network.toString(36)}`
  }

  #setUp(): Promise<void> {
    this.#ready ??= this.#installFilter().catch((error) => {
      this.#ready = undefined
      throw error
    })
    return this.#ready
  }

  async #installFilter(): Promise<void> {
    await runCommand('nft', ['-f', '-'], { input: egressFilter(this.#table, `"th${this.#tag}*"`, this.#resolvers) })
    if (readFileSync('/proc/sys/net/ipv4/ip_forward', 'latin1').trim() !== '1') writeFileSync('/proc/sys/net/ipv4/ip_forward', '1')
  }
}

/** Arguments: the namespace, the link's name on this side, and the addresses of this side and of the sandbox's. */
const makeNetwork = `set -e
ip netns add "$1"
ip -batch - <<END
link add $2 type veth peer name eth0 netns $1
addr add $3/30 dev $2
link set $2 up
END
ip -n "$1" -batch - <<END
addr add $4/30 dev eth0
link set lo up
link set eth0 up
route add default via $3
END`

/** Host side and sandbox side of the n-th /30. */
function addresses(network: number): [outer: string, inner: string] {
  const base = poolBase + network * 4
  return [dotted(base + 1), dotted(base + 2)]
}

function dotted(address: number): string {
  return [24, 16, 8, 0].map((shift) => (address >>> shift) & 255).join('.')
}

/** First network of a block that no interface of this host uses yet, searched from a preferred one. */
function freeServerSlot(preferred: number): number {
  const used = new Set<number>()
  for (const interfaces of Object.values(networkInterfaces())) {
    for (const { address, family } of interfaces ?? []) {
      if (family !== 'IPv4') continue
      const parts = address.split('.').map(Number)
      const value = parts.reduce((sum, part) => sum * 256 + part, 0)
      if (value >= poolBase && value < poolBase + 2 ** 22) used.add(Math.floor((value - poolBase) / 4 / networksPerServer))
    }
  }
  for (let step = 0; step < 1024; step++) {
    const slot = (preferred + step) % 1024
    if (!used.has(slot)) return slot * networksPerServer
  }
  return preferred * networksPerServer
}
