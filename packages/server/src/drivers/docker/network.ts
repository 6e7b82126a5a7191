import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { runCommand } from '../command.ts'
import { egressFilter, hostResolvers } from '../egress.ts'
import { type Engine, statusOf } from './engine.ts'

/**
 * Network mode `egress`: one bridge network for all sandboxes of a server. Where the engine shares this host's network and
 * the server is root, a packet filter of ours on the bridge lets them reach the public internet alone; sandboxes never reach
 * each other there. Elsewhere nothing of ours filters, which `probe` says.
 */
export class BridgeNetwork {
  /** Name of the network in the engine. */
  readonly name: string
  readonly resolvers: readonly string[]
  readonly #engine: Engine
  readonly #link: string
  readonly #table: string
  readonly #label: string
  #ready: Promise<void> | undefined

  /** @param tag tells the servers of one engine apart. */
  constructor(engine: Engine, tag: string) {
    this.#engine = engine
    this.name = `thaw-${tag}`
    this.#label = tag
    // An interface name has at most 15 characters.
    this.#link = `thd${tag}`
    this.#table = `thaw_docker_${tag}`
    // Those of this host say nothing about the network of a remote engine, which has its own.
    this.resolvers = hostResolvers()
  }

  /** Makes network and filter where they are missing. */
  setUp(): Promise<void> {
    this.#ready ??= this.#make().catch((error) => {
      this.#ready = undefined
      throw error
    })
    return this.#ready
  }

  /** After the engine has lost it, or somebody removed it. */
  forget(): void {
    this.#ready = undefined
  }

  /** Removes both, unless sandboxes use them. Idempotent. */
  async remove(): Promise<void> {
    this.#ready = undefined
    try {
      await this.#engine.call('DELETE', `/networks/${this.name}`)
    } catch (error) {
      if (statusOf(error) === 403 || statusOf(error) === 409) return
      if (statusOf(error) !== 404) throw error
    }
    for (const family of ['inet', 'bridge']) await runCommand('nft', ['delete', 'table', family, this.#table]).catch(() => undefined)
  }

  /** Whether the filter can hold here, tried with a network that is removed again. */
  async canFilter(probeName: string): Promise<boolean> {
    const link = `thp${probeName.slice(-10)}`
    await createNetwork(this.#engine, probeName, link, this.#label)
    try {
      if (!sharesNetwork(link)) return false
      return await runCommand('nft', ['--check', '-f', '-'], { input: this.#filter(link, await this.#subnets(probeName)) }).then(
        () => true,
        () => false,
      )
    } finally {
      await this.#engine.call('DELETE', `/networks/${probeName}`).catch(() => undefined)
    }
  }

  async #make(): Promise<void> {
    try {
      await createNetwork(this.#engine, this.name, this.#link, this.#label)
    } catch (error) {
      if (statusOf(error) !== 409) throw error
    }
    if (!sharesNetwork(this.#link)) return
    await runCommand('nft', ['-f', '-'], { input: this.#filter(this.#link, await this.#subnets(this.name)) })
    if (readFileSync('/proc/sys/net/ipv4/ip_forward', 'latin1').trim() !== '1') writeFileSync('/proc/sys/net/ipv4/ip_forward', '1')
  }

  async #subnets(network: string): Promise<string[]> {
    const { IPAM } = await this.#engine.call<{ IPAM: { Config: { Subnet?: string }[] | null } }>('GET', `/networks/${network}`)
    return (IPAM.Config ?? []).flatMap(({ Subnet }) => (Subnet === undefined ? [] : [Subnet]))
  }

  /** What goes from one sandbox to another is switched by the bridge and never routed: it is dropped there. */
  #filter(link: string, subnets: string[]): string {
    const between = subnets.map((subnet) => `ip saddr ${subnet} ip daddr ${subnet} drop`).join('; ')
    return `${egressFilter(this.#table, `"${link}"`, this.resolvers)}
      table bridge ${this.#table}
      delete table bridge ${this.#table}
      table bridge ${this.#table} {
        chain forward {
          type filter hook forward priority filter; policy accept;
          ${between}
        }
      }`
  }
}

async function createNetwork(engine: Engine, name: string, link: string, tag: string): Promise<void> {
  await engine.call('POST', '/networks/create', {
    body: {
      Name: name,
      CheckDuplicate: true,
      Driver: 'bridge',
      EnableIPv6: false,
      Labels: { 'thaw.owner': tag },
      Options: {
        'com.docker.network.bridge.name': link,
        'com.docker.network.bridge.enable_icc': 'false',
        'com.docker.network.bridge.enable_ip_masquerade': 'true',
      },
    },
  })
}

/** Whether the engine's bridges are ours to filter. */
function sharesNetwork(link: string): boolean {
  return process.getuid?.() === 0 && existsSync(join('/sys/class/net', link))
}
