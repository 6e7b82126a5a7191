import type { ThawError } from '@thaw/protocol'
import type { FastifyError } from 'fastify'
import type { E2bSandboxes } from '../../control/sandboxes/e2b.ts'
import type { E2bBuilds } from '../../control/sandboxes/e2b-builds.ts'
import type { E2bTemplates } from '../../control/sandboxes/e2b-templates.ts'
import type { GatewayParts } from '../parts.ts'
import { retryAfter } from '../respond.ts'
import type { Routes } from '../server.ts'
import { e2bError } from './errors.ts'
import { e2bSandboxRoutes } from './sandbox-routes.ts'
import { e2bSnapshotRoutes } from './snapshot-routes.ts'
import { e2bTemplateRoutes } from './template-routes.ts'

export interface E2bRouteParts extends Pick<GatewayParts, 'snapshots' | 'images' | 'idempotency' | 'log'> {
  e2b: E2bSandboxes
  templates: E2bTemplates
  builds: E2bBuilds
  sandboxDomain: string
}

const paths = /^\/(?:e2b(?:\/|$)|(?:v[23]\/)?(?:sandboxes|templates|snapshots|volumes|secrets)(?:\/|$))/

/** Whether a path belongs to the API of E2B, so that errors have its form. */
export function isE2bPath(path: string): boolean {
  return paths.test(path)
}

/** The control API of E2B, at the root, where its clients look for it, and below /e2b. */
export async function registerE2b(app: Routes, parts: E2bRouteParts, toError: (error: FastifyError) => ThawError): Promise<void> {
  for (const prefix of ['', '/e2b']) {
    await app.register(
      async (scope) => {
        const routes = scope as unknown as Routes
        routes.setErrorHandler((error: FastifyError, request, reply) => {
          const thaw = toError(error)
          if (thaw.code === 'internal') parts.log.error({ err: error, request_id: request.id }, 'request failed')
          const body = e2bError(thaw)
          return reply.status(body.code).headers(retryAfter(thaw)).send(body)
        })
        e2bSandboxRoutes(routes, parts)
        e2bSnapshotRoutes(routes, parts)
        e2bTemplateRoutes(routes, parts)
      },
      { prefix },
    )
  }
}
