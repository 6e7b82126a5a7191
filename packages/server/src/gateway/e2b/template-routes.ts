import { z } from 'zod'
import { callerOf } from '../auth.ts'
import type { Routes } from '../server.ts'
import { unsupported } from './errors.ts'
import type { E2bRouteParts } from './index.ts'
import { snapshotOf } from './snapshot-routes.ts'

const templateParams = z.object({ template: z.string().min(1).max(512) })

export function e2bTemplateRoutes(app: Routes, parts: E2bRouteParts): void {
  app.delete('/templates/:template', { schema: { hide: true, params: templateParams } }, async (request, reply) => {
    const { id } = await snapshotOf(parts, callerOf(request), request.params.template)
    await parts.snapshots.delete(callerOf(request), id)
    return reply.status(204).send()
  })

  for (const [path, what] of [
    ['volumes', 'volumes'],
    ['secrets', "E2B's secrets"],
  ] as const) {
    for (const url of [`/${path}`, `/${path}/*`]) {
      app.all(url, { schema: { hide: true } }, async () => {
        throw unsupported(what, 'docs/e2b.md says what is supported.')
      })
    }
  }
}
