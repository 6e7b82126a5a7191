import { ThawError } from '@thaw/protocol'
import { z } from 'zod'
import type { E2bBuild } from '../../control/sandboxes/e2b-builds.ts'
import { callerOf } from '../auth.ts'
import type { Routes } from '../server.ts'
import { unsupported } from './errors.ts'
import type { E2bRouteParts } from './index.ts'
import { snapshotOf } from './snapshot-routes.ts'
import { uploadPrefix } from './traffic.ts'
import { envdVersion } from './views.ts'

const templateParams = z.object({ template: z.string().min(1).max(512) })
const buildParams = templateParams.extend({ build: z.string().min(1).max(64) })

/** No slash and no @: those are of references to images. */
const namePattern = /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/
const tagSchema = z.string().regex(namePattern, 'a tag has letters, digits, ., _ and -')
const requestSchema = z.strictObject({
  name: z.string().max(128).optional(),
  alias: z.string().max(128).optional(),
  tags: z.array(tagSchema).max(8).nullish(),
  teamID: z.string().optional(),
  cpuCount: z.int().min(1).max(256).nullish(),
  memoryMB: z.int().min(16).max(1_048_576).nullish(),
  /** The disk of a sandbox is as large as what the host has. */
  minFreeDiskMB: z.int().min(0).nullish(),
  minFreeDiskMb: z.int().min(0).nullish(),
})
const stepSchema = z.strictObject({
  type: z.string().max(32),
  args: z.array(z.string().max(131_072)).max(512).default([]),
  filesHash: z.string().max(128).nullish(),
  force: z.boolean().nullish(),
  forceUpload: z.boolean().nullish(),
})
const startSchema = z.strictObject({
  fromImage: z.string().min(1).max(512).nullish(),
  fromTemplate: z.string().min(1).max(512).nullish(),
  fromImageRegistry: z.unknown().optional(),
  /** Nothing is cached: every build does every step. */
  force: z.boolean().nullish(),
  steps: z.array(stepSchema).max(1000).default([]),
  startCmd: z.string().max(131_072).nullish(),
  readyCmd: z.string().max(131_072).nullish(),
})
const statusSchema = z.strictObject({
  logsOffset: z.coerce.number().int().min(0).default(0),
  limit: z.coerce.number().int().min(0).max(100).default(100),
  level: z.enum(['debug', 'info', 'warn', 'error']).optional(),
})
/** Steps, with commands in them. */
const bodyLimit = 8 * 1024 * 1024

/** Templates: images, snapshots with a name, and what is built from steps. */
export function e2bTemplateRoutes(app: Routes, parts: E2bRouteParts): void {
  buildRoutes(app, parts)
  keptRoutes(app, parts)
  refusals(app)
}

function buildRoutes(app: Routes, { builds }: E2bRouteParts): void {
  app.post('/v3/templates', { schema: { hide: true, body: requestSchema } }, async (request, reply) => {
    const { name, alias, tags, cpuCount, memoryMB } = request.body
    const [base = '', tag, ...rest] = (name ?? alias ?? '').split(':')
    if (!namePattern.test(base) || rest.length > 0 || (tag !== undefined && !namePattern.test(tag)))
      throw new ThawError('invalid_request', 'name: use letters, digits, ., _ and -, and a tag behind a colon if need be.')
    const build = builds.request(callerOf(request), {
      name: base,
      tags: [...(tag === undefined ? [] : [tag]), ...(tags ?? [])],
      cpus: cpuCount ?? undefined,
      memoryMib: memoryMB ?? undefined,
    })
    return reply.status(202).send({
      templateID: build.template,
      buildID: build.id,
      public: false,
      names: build.names,
      aliases: build.names,
      tags: build.request.tags,
    })
  })

  app.get(
    '/templates/:template/files/:hash',
    { schema: { hide: true, params: templateParams.extend({ hash: z.string().min(1).max(128) }) } },
    async (request, reply) => {
      const build = builds.latest(callerOf(request), request.params.template)
      const { hash } = request.params
      const { host = 'localhost', 'x-forwarded-proto': proto } = request.headers
      const url = `${proto === 'https' ? 'https' : 'http'}://${host}${uploadPrefix}${builds.uploadToken(build, hash)}`
      return reply.status(201).send({ present: build.uploads.has(hash), url })
    },
  )

  app.post(
    '/v2/templates/:template/builds/:build',
    { bodyLimit, schema: { hide: true, params: buildParams, body: startSchema } },
    async (request, reply) => {
      const { fromImage, fromTemplate, fromImageRegistry, steps, startCmd, readyCmd } = request.body
      if (fromImageRegistry !== undefined && fromImageRegistry !== null)
        throw unsupported('credentials for registries in a build', 'Give them to the server: registries.auth_file (docs/config.md).')
      const caller = callerOf(request)
      builds.start(caller, buildOf(builds.get(caller, request.params.build), request.params.template), {
        from: fromTemplate ?? fromImage ?? 'base',
        steps: steps.map(({ type, args, filesHash }) => ({ type, args, filesHash: filesHash ?? undefined })),
        startCmd: startCmd ?? undefined,
        readyCmd: readyCmd ?? undefined,
      })
      return reply.status(202).send({})
    },
  )

  app.get(
    '/templates/:template/builds/:build/status',
    { schema: { hide: true, params: buildParams, querystring: statusSchema } },
    async (request) => {
      const { logsOffset, limit, level } = request.query
      const build = buildOf(builds.get(callerOf(request), request.params.build), request.params.template)
      const entries = level === 'error' ? build.log.filter((one) => one.level === 'error') : build.log
      return {
        templateID: build.template,
        buildID: build.id,
        status: build.status,
        logs: [],
        logEntries: entries.slice(logsOffset, logsOffset + limit),
        ...(build.reason === null ? {} : { reason: { ...build.reason, logEntries: build.log.slice(-20) } }),
      }
    },
  )
}

function buildOf(build: E2bBuild, template: string): E2bBuild {
  if (build.template === template || build.names.includes(template)) return build
  throw new ThawError('image_not_found', `The build ${build.id} is not one of ${JSON.stringify(template.slice(0, 100))}.`)
}

function keptRoutes(app: Routes, parts: E2bRouteParts): void {
  const { templates, snapshots } = parts

  app.get('/templates/aliases/:template', { schema: { hide: true, params: templateParams } }, async (request) => {
    await templates.source(callerOf(request), request.params.template)
    return { templateID: request.params.template, public: false }
  })

  for (const path of ['/templates', '/v2/templates']) {
    app.get(path, { schema: { hide: true, querystring: z.object({}) } }, async (request) => {
      const named = new Map<string, ReturnType<typeof templateView>>()
      for await (const row of templates.all(callerOf(request)))
        if (row.state === 'ready' && row.name !== null && !named.has(row.name)) named.set(row.name, templateView(row))
      return [...named.values()]
    })
  }

  app.get('/templates/:template', { schema: { hide: true, params: templateParams } }, async (request) => ({
    ...templateView(await snapshotOf(parts, callerOf(request), request.params.template)),
    builds: [],
  }))

  app.delete('/templates/:template', { schema: { hide: true, params: templateParams } }, async (request, reply) => {
    const { id } = await snapshotOf(parts, callerOf(request), request.params.template)
    await snapshots.delete(callerOf(request), id)
    return reply.status(204).send()
  })
}

function templateView({ id, name, spec, created_at }: Awaited<ReturnType<typeof snapshotOf>>) {
  const names = name === null ? [] : [name]
  const time = new Date(created_at).toISOString()
  return {
    templateID: name ?? id,
    buildID: id,
    cpuCount: Math.ceil(spec.resources.cpus),
    memoryMB: spec.resources.memory_mib,
    diskSizeMB: spec.resources.disk_mib ?? 0,
    public: false,
    aliases: names,
    names,
    createdAt: time,
    updatedAt: time,
    createdBy: null,
    lastSpawnedAt: null,
    spawnCount: 0,
    buildCount: 1,
    envdVersion,
    buildStatus: 'ready',
  }
}

function refusals(app: Routes): void {
  const refused: [string, string, string][] = [
    ['/volumes', 'volumes', 'Copy files in.'],
    ['/volumes/*', 'volumes', 'Copy files in.'],
    ['/secrets', "E2B's secrets", 'Give secrets as environment variables.'],
    ['/secrets/*', "E2B's secrets", 'Give secrets as environment variables.'],
    ['/templates/tags', 'changing the tags of a template', 'Build it with its tags.'],
    ['/templates/:template/tags', 'listing the tags of a template', 'Look at GET /templates.'],
  ]
  for (const [url, what, fix] of refused) {
    app.all(url, { schema: { hide: true } }, async () => {
      throw unsupported(what, fix)
    })
  }
  for (const url of ['/templates', '/v2/templates', '/templates/:template', '/templates/:template/builds/:build']) {
    app.post(url, { schema: { hide: true } }, async () => {
      throw unsupported('this way of building templates', 'Use a newer client, which builds by /v3/templates.')
    })
  }
}
