import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Duplex } from 'node:stream'
import { ThawError, toThawError } from '@thaw/protocol'
import type { Caller } from '../control/caller.ts'
import { SandboxPorts } from '../control/sandboxes/ports.ts'
import type { Sandboxes } from '../control/sandboxes/sandboxes.ts'
import type { Snapshots } from '../control/sandboxes/snapshots.ts'
import { refuseUnread, respondError } from './respond.ts'
import { SandboxFiles } from './sandbox-files.ts'
import { type PortTarget, pathTarget, type SandboxHosts } from './sandbox-hosts.ts'
import { PortProxy } from './sandbox-ports.ts'
import { StreamSockets } from './sandbox-stream.ts'
import { SandboxTunnels } from './sandbox-tunnel.ts'
import type { TunnelLimits } from './upgrade.ts'

const filesPattern = /^\/v1\/(?:sandboxes|instances)\/([^/]{1,64})\/files(\/tar)?$/
const streamPattern = /^\/v1\/(?:sandboxes|instances)\/([^/]{1,64})\/stream$/
const tunnelPattern = /^\/v1\/(?:sandboxes|instances)\/([^/]{1,64})\/tunnel\/([^/]{1,16})$/

const portPath = /^(?:\/api)?\/v1\/(?:sandboxes|instances)\/[^/?]{1,64}\/ports\//

export interface SandboxPathParts {
  sandboxes: Sandboxes
  snapshots: Snapshots
  hosts: SandboxHosts
  websocket: TunnelLimits
}

/** Paths and host names of sandboxes whose bodies pass through as they come, past the framework. */
export class SandboxPaths {
  readonly #hosts: SandboxHosts
  readonly #files: SandboxFiles
  readonly #ports: PortProxy
  readonly #tunnels: SandboxTunnels
  readonly #streams: StreamSockets

  constructor({ sandboxes, snapshots, hosts, websocket }: SandboxPathParts) {
    this.#hosts = hosts
    this.#files = new SandboxFiles(sandboxes)
    const ports = new SandboxPorts(sandboxes)
    this.#ports = new PortProxy(ports, websocket)
    this.#tunnels = new SandboxTunnels(ports)
    this.#streams = new StreamSockets({ sandboxes, snapshots, stallMs: websocket.stallMs })
  }

  /** False: the path is somebody else's. */
  handle(caller: Caller, path: string, query: string, request: IncomingMessage, response: ServerResponse): boolean {
    try {
      const target = this.#target(path, query, request)
      const files = target === null ? filesPattern.exec(path) : null
      if (target?.isBare === true) redirect(path, query, request, response)
      else if (target !== null) void this.#ports.request(caller, target, request, response)
      else if (files !== null) void this.#files.handle(caller, files[1] as string, files[2] !== undefined, query, request, response)
      else if (streamPattern.test(path) || tunnelPattern.test(path))
        throw new ThawError('invalid_request', 'This path is a WebSocket.', { fix: 'Open it with a WebSocket client.' })
      else return false
    } catch (error) {
      refuseUnread(request, response, toThawError(error))
    }
    return true
  }

  /** As `handle`, for a connection that asks for another protocol. */
  upgrade(
    caller: Caller,
    path: string,
    query: string,
    request: IncomingMessage,
    response: ServerResponse,
    socket: Duplex,
    head: Buffer,
  ): boolean {
    try {
      const target = this.#target(path, query, request)
      const stream = target === null ? streamPattern.exec(path) : null
      const tunnel = target === null ? tunnelPattern.exec(path) : null
      if (target !== null) void this.#ports.upgrade(caller, target, request, response, socket, head)
      else if (stream !== null) void this.#streams.upgrade(caller, stream[1] as string, query, request, response, socket, head)
      else if (tunnel !== null)
        void this.#tunnels.upgrade(caller, tunnel[1] as string, tunnel[2] as string, request, response, socket, head)
      else return false
    } catch (error) {
      respondError(response, toThawError(error))
    }
    return true
  }

  /** Whether a request may ask for another protocol than WebSocket: what a server inside understands is its own matter. */
  passesUpgrade(request: IncomingMessage): boolean {
    const { host, upgrade, 'content-length': length, 'transfer-encoding': coding } = request.headers
    // A body would be taken for what comes behind the upgrade; and HTTP/2 is no matter of the server inside.
    if (upgrade === undefined || /\bh2c?\b/i.test(upgrade) || coding !== undefined || (length !== undefined && length !== '0')) return false
    return this.#hosts.has(host) || portPath.test(request.url ?? '')
  }

  /** Ends connections that are no longer HTTP's, which the server does not know. */
  async close(): Promise<void> {
    this.#ports.close()
    this.#tunnels.close()
    await this.#streams.close()
  }

  #target(path: string, query: string, request: IncomingMessage): (PortTarget & { isBare: boolean }) | null {
    const hosted = this.#hosts.target(request.headers.host, request.url ?? '/')
    return hosted === null ? pathTarget(path, query) : { ...hosted, isBare: false }
  }
}

/** Links of a page are relative to its last slash, which has to be there. */
function redirect(path: string, query: string, request: IncomingMessage, response: ServerResponse): void {
  const location = `${path.slice(path.lastIndexOf('/') + 1)}/${query === '' ? '' : `?${query}`}`
  response.writeHead(308, { location, 'content-length': 0, ...(request.complete ? {} : { connection: 'close' }) })
  response.end()
}
