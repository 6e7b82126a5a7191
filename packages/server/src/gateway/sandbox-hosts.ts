import { ThawError } from '@thaw/protocol'

/** Where a request goes inside a sandbox. */
export interface PortTarget {
  /** Id or name of the sandbox. */
  sandbox: string
  port: number
  /** With its query. */
  path: string
  /** What was cut off in front of the path; empty where a host name led here. */
  prefix: string
}

const pathPattern = /^\/v1\/(?:sandboxes|instances)\/([^/]{1,64})\/ports\/([^/]{1,16})(\/.*)?$/
const hostPattern = /^([0-9]{1,9})-([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)\.([a-z0-9.-]+?)(?::[0-9]{1,5})?$/i

/** Host names of ports in sandboxes: `{port}-{id or name}.{domain}`. */
export class SandboxHosts {
  readonly #domain: string

  constructor(domain: string) {
    this.#domain = domain.toLowerCase()
  }

  /** Whether a Host names a port, so that nothing else is to be served under it. */
  has(host: string | undefined): boolean {
    return host !== undefined && hostPattern.exec(host)?.[3]?.toLowerCase() === this.#domain
  }

  /** Null: the Host names no port. Throws `invalid_request` for a port that cannot be. */
  target(host: string | undefined, url: string): PortTarget | null {
    const match = host === undefined ? null : hostPattern.exec(host)
    if (match?.[3]?.toLowerCase() !== this.#domain) return null
    return { port: readPort(match[1] as string), sandbox: (match[2] as string).toLowerCase(), path: url, prefix: '' }
  }
}

/** Null: the path leads to no port. `path` is without the query. Throws `invalid_request` for a port that cannot be. */
export function pathTarget(path: string, query: string): (PortTarget & { isBare: boolean }) | null {
  const match = pathPattern.exec(path)
  if (match === null) return null
  const [, sandbox = '', port = '', rest] = match
  return {
    sandbox,
    port: readPort(port),
    path: query === '' ? (rest ?? '/') : `${rest ?? '/'}?${query}`,
    prefix: path.slice(0, path.length - (rest?.length ?? 0)),
    isBare: rest === undefined,
  }
}

/** Throws `invalid_request` for what is no port. */
export function readPort(text: string): number {
  const port = /^[1-9][0-9]{0,4}$/.test(text) ? Number(text) : 0
  if (port < 1 || port > 65_535) throw new ThawError('invalid_request', 'A port is a whole number from 1 to 65535.')
  return port
}
