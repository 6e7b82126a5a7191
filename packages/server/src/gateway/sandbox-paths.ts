import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Caller } from '../control/caller.ts'
import type { Sandboxes } from '../control/sandboxes/sandboxes.ts'
import { SandboxFiles } from './sandbox-files.ts'

const pattern = /^\/v1\/(?:sandboxes|instances)\/([^/]{1,64})\/files(\/tar)?$/

/** Paths of sandboxes whose bodies pass through as they come, past the framework. */
export class SandboxPaths {
  readonly #files: SandboxFiles

  constructor(sandboxes: Sandboxes) {
    this.#files = new SandboxFiles(sandboxes)
  }

  /** False: the path is somebody else's. */
  handle(caller: Caller, path: string, query: string, request: IncomingMessage, response: ServerResponse): boolean {
    const match = pattern.exec(path)
    if (match === null) return false
    void this.#files.handle(caller, match[1] as string, match[2] !== undefined, query, request, response)
    return true
  }
}
