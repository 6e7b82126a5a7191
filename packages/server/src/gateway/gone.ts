import type { ServerResponse } from 'node:http'

/** Aborts when the client goes away before it has its answer. */
export function goneSignal(response: Pick<ServerResponse, 'once' | 'writableFinished' | 'destroyed'>): AbortSignal {
  const gone = new AbortController()
  // It went while its request was still looked at.
  if (response.destroyed && !response.writableFinished) gone.abort()
  response.once('close', () => {
    if (!response.writableFinished) gone.abort()
  })
  return gone.signal
}

/** Resolves when the client has all of its answer, or went away. */
export function answered(response: Pick<ServerResponse, 'once' | 'destroyed'>): Promise<void> {
  if (response.destroyed) return Promise.resolve()
  return new Promise((resolve) => response.once('close', () => resolve()))
}
