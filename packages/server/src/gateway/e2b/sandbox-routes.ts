import type { FastifyRequest } from 'fastify'
import { callerOf } from '../auth.ts'
import { answerOnce } from '../idempotency.ts'
import type { Routes } from '../server.ts'
import { unsupported } from './errors.ts'
import type { E2bRouteParts } from './index.ts'
import { milliseconds, readCreate, readMetadata, readNetwork, readToken, withoutMemory, writeToken } from './requests.ts'
import {
  connectSchema,
  forkSchema,
  idSchema,
  listSchema,
  manyMetricsSchema,
  metricsQuerySchema,
  networkUpdateSchema,
  newSandboxSchema,
  pauseSchema,
  refreshSchema,
  resumeSchema,
  timeoutSchema,
} from './schemas.ts'
import { detailView, domainFor, listedView, metricView, sandboxView } from './views.ts'

/** How long sandboxes live where nothing is said, as E2B's API has it. */
const oldTimeoutS = 15
const timeoutS = 300
const params = { params: idSchema }

/** `/sandboxes`: their lives. */
export function e2bSandboxRoutes(app: Routes, parts: E2bRouteParts): void {
  lifeRoutes(app, parts)
  clockRoutes(app, parts)
  useRoutes(app, parts)
}

function lifeRoutes(app: Routes, { e2b, templates, idempotency, sandboxDomain }: E2bRouteParts): void {
  const domainOf = ({ raw }: FastifyRequest) => domainFor(raw, sandboxDomain)

  for (const [path, defaults] of [
    ['/sandboxes', { timeoutS: oldTimeoutS, mayBeOpen: true }],
    ['/v2/sandboxes', { timeoutS, mayBeOpen: false }],
  ] as const) {
    app.post(path, { schema: { hide: true, body: newSandboxSchema } }, (request, reply) =>
      answerOnce(
        request,
        reply,
        idempotency,
        () => [JSON.stringify(request.body)],
        async () => {
          const asked = readCreate(request.body, defaults)
          const source = await templates.source(callerOf(request), request.body.templateID)
          const view = await e2b.create(callerOf(request), { ...asked, source })
          return { status: 201, body: sandboxView(view, domainOf(request)) }
        },
      ),
    )

    app.get(path, { schema: { hide: true, querystring: listSchema } }, async (request, reply) => {
      const { metadata, state, startedAfter, template, order, limit, nextToken } = request.query
      // The first version of the list knows no paused sandboxes.
      const usual = path === '/sandboxes' ? 'running' : 'running,paused'
      const views = e2b.list(callerOf(request), {
        states: (state ?? usual).split(',') as ('running' | 'paused')[],
        metadata: readMetadata(metadata),
        template,
        startedAfter: startedAfter === undefined ? undefined : Date.parse(startedAfter),
        order: order ?? 'desc',
        limit,
        after: nextToken === undefined ? undefined : readToken(nextToken),
      })
      const page = views.slice(0, limit).map(listedView)
      const last = page.at(-1)
      if (views.length > limit && last !== undefined) reply.header('x-next-token', writeToken(last.startedAt, last.sandboxID))
      return page
    })
  }

  app.get('/sandboxes/:id', { schema: { hide: true, ...params } }, async (request) =>
    detailView(await e2b.get(callerOf(request), request.params.id), domainOf(request)),
  )

  app.delete('/sandboxes/:id', { schema: { hide: true, ...params } }, async (request, reply) => {
    await e2b.delete(callerOf(request), request.params.id)
    return reply.status(204).send()
  })

  for (const path of ['/sandboxes/:id/connect', '/v2/sandboxes/:id/connect']) {
    app.post(path, { schema: { hide: true, ...params, body: connectSchema } }, async (request, reply) => {
      const { timeout, memory } = request.body
      const { id } = request.params
      const caller = callerOf(request)
      if (memory === false && !e2b.isRunning(caller, id)) throw withoutMemory()
      const { view, resumed } = await e2b.connect(caller, id, milliseconds(timeout ?? timeoutS))
      return reply.status(resumed ? 201 : 200).send(sandboxView(view, domainOf(request)))
    })
  }

  app.post('/sandboxes/:id/resume', { schema: { hide: true, ...params, body: resumeSchema } }, async (request, reply) => {
    const { timeout, autoPause, memory } = request.body
    if (memory === false) throw withoutMemory()
    const onTimeout = autoPause === undefined || autoPause === null ? undefined : autoPause ? 'pause' : 'stop'
    const view = await e2b.resume(callerOf(request), request.params.id, milliseconds(timeout ?? oldTimeoutS), onTimeout)
    return reply.status(201).send(sandboxView(view, domainOf(request)))
  })

  // requireHealthyGuest needs nothing: a sandbox is paused as a whole, whatever its agent does.
  app.post('/sandboxes/:id/pause', { schema: { hide: true, ...params, body: pauseSchema } }, async (request, reply) => {
    if (request.body.memory === false) throw withoutMemory()
    await e2b.pause(callerOf(request), request.params.id)
    return reply.status(204).send()
  })

  app.post('/sandboxes/:id/fork', { schema: { hide: true, ...params, body: forkSchema } }, async (request, reply) => {
    const { timeout, count } = request.body
    // E2B tells of each fork by itself. Here all of them succeed, or the call fails, and clients try again where that may help.
    const views = await e2b.fork(callerOf(request), request.params.id, count ?? 1, milliseconds(timeout ?? oldTimeoutS))
    return reply.status(201).send(views.map((view) => ({ sandbox: sandboxView(view, domainOf(request)) })))
  })
}

function clockRoutes(app: Routes, { e2b }: E2bRouteParts): void {
  app.post('/sandboxes/:id/timeout', { schema: { hide: true, ...params, body: timeoutSchema } }, async (request, reply) => {
    // 0 ends it.
    await e2b.setTimeout(callerOf(request), request.params.id, request.body.timeout * 1000)
    return reply.status(204).send()
  })

  app.post('/sandboxes/:id/refreshes', { schema: { hide: true, ...params, body: refreshSchema } }, async (request, reply) => {
    await e2b.refresh(callerOf(request), request.params.id, milliseconds(request.body.duration ?? oldTimeoutS))
    return reply.status(204).send()
  })
}

function useRoutes(app: Routes, { e2b }: E2bRouteParts): void {
  app.get('/sandboxes/:id/metrics', { schema: { hide: true, ...params, querystring: metricsQuerySchema } }, async (request) => {
    const { start = 0, end = Number.POSITIVE_INFINITY } = request.query
    const reading = await e2b.metrics(callerOf(request), request.params.id)
    const now = Date.now()
    return reading === null || now / 1000 < start || Math.floor(now / 1000) > end ? [] : [metricView(reading, now)]
  })

  app.get('/sandboxes/metrics', { schema: { hide: true, querystring: manyMetricsSchema } }, async (request) => {
    const ids = request.query.sandbox_ids.split(',').filter((id) => id !== '')
    const caller = callerOf(request)
    const readings = await Promise.all(ids.slice(0, 100).map(async (id) => [id, await e2b.metrics(caller, id).catch(() => null)] as const))
    const now = Date.now()
    return {
      sandboxes: Object.fromEntries(readings.flatMap(([id, reading]) => (reading === null ? [] : [[id, metricView(reading, now)]]))),
    }
  })

  app.put('/sandboxes/:id/network', { schema: { hide: true, ...params, body: networkUpdateSchema } }, async (request, reply) => {
    const { allow_internet_access, ...network } = request.body
    const wanted = readNetwork(network, allow_internet_access)
    const { item } = await e2b.get(callerOf(request), request.params.id)
    if (wanted !== item.network)
      throw unsupported('changing the network of a sandbox', `It has network ${item.network}; create another one with what it is to have.`)
    return reply.status(204).send()
  })

  for (const path of ['/sandboxes/:id/logs', '/v2/sandboxes/:id/logs']) {
    app.get(path, { schema: { hide: true, ...params } }, async (request) => {
      await e2b.get(callerOf(request), request.params.id)
      throw unsupported(
        'logs of sandboxes',
        'Commands give their output to whoever starts or joins them: use commands.run and commands.connect.',
      )
    })
  }
}
