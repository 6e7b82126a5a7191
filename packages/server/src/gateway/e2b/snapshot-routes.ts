import { snapshotCreateSchema, ThawError } from '@thaw/protocol'
import { callerOf } from '../auth.ts'
import type { Routes } from '../server.ts'
import type { E2bRouteParts } from './index.ts'
import { idSchema, snapshotListSchema, snapshotSchema } from './schemas.ts'

function snapshotView({ id, name }: { id: string; name: string | null }) {
  return { snapshotID: id, names: name === null ? [] : [name] }
}

/** Snapshots, which are templates to E2B. */
export function e2bSnapshotRoutes(app: Routes, { e2b, snapshots, templates }: E2bRouteParts): void {
  app.post('/sandboxes/:id/snapshots', { schema: { hide: true, params: idSchema, body: snapshotSchema } }, async (request, reply) => {
    const { name, memory } = request.body
    const caller = callerOf(request)
    // Of one that has ended there is nothing to keep: to E2B it is not there.
    await e2b.get(caller, request.params.id)
    const taken = await snapshots.take(
      caller,
      request.params.id,
      snapshotCreateSchema.parse({
        ...(memory === undefined || memory === null ? {} : { kind: memory ? 'memory' : 'filesystem' }),
        ...(name === undefined || name === null ? {} : { name }),
      }),
    )
    return reply.status(201).send(snapshotView(taken))
  })

  app.get('/snapshots', { schema: { hide: true, querystring: snapshotListSchema } }, async (request, reply) => {
    const { sandboxID, name, limit, nextToken } = request.query
    const page: { id: string; name: string | null }[] = []
    let seen = nextToken === undefined
    for await (const row of templates.all(callerOf(request), sandboxID)) {
      if (!seen) {
        seen = row.id === nextToken
        continue
      }
      if (row.state !== 'ready' || (name !== undefined && row.name !== name && row.id !== name)) continue
      if (page.length === limit) {
        reply.header('x-next-token', page.at(-1)?.id ?? '')
        break
      }
      page.push(row)
    }
    return page.map(snapshotView)
  })
}

/** A snapshot by id or name. Throws `snapshot_not_found`. */
export async function snapshotOf({ templates }: E2bRouteParts, caller: Parameters<typeof templates.snapshot>[0], idOrName: string) {
  const row = await templates.snapshot(caller, idOrName)
  if (row === null) throw new ThawError('snapshot_not_found', `There is no template or snapshot ${JSON.stringify(idOrName.slice(0, 100))}.`)
  return row
}
