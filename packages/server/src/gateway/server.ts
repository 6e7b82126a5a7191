import { createServer, type IncomingMessage, type Server, type ServerOptions, type ServerResponse, STATUS_CODES } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import multipart from '@fastify/multipart'
import { newId, ThawError, toThawError } from '@thaw/protocol'
import Fastify, { type FastifyError, type FastifyInstance } from 'fastify'
import { hasZodFastifySchemaValidationErrors, serializerCompiler, validatorCompiler, type ZodTypeProvider } from 'fastify-type-provider-zod'
import { SandboxPorts } from '../control/sandboxes/ports.ts'
import { Admission, isOpenPath, rememberCaller } from './auth.ts'
import { respondE2bError } from './e2b/errors.ts'
import { isE2bPath, registerE2b } from './e2b/index.ts'
import { E2bTraffic } from './e2b/traffic.ts'
import { guardLoopback } from './guard.ts'
import { InvokePaths } from './invoke.ts'
import { describeApi } from './openapi.ts'
import type { GatewayOptions, GatewayParts } from './parts.ts'
import { RateLimit } from './rate-limit.ts'
import { refuseUnread, respondError, retryAfter } from './respond.ts'
import { RouteTable } from './route-table.ts'
import { functionRoutes } from './routes/functions.ts'
import { imageRoutes } from './routes/images.ts'
import { invocationRoutes } from './routes/invocations.ts'
import { keyRoutes } from './routes/keys.ts'
import { platformRoutes } from './routes/platform.ts'
import { poolRoutes } from './routes/pools.ts'
import { sandboxFileRoutes } from './routes/sandbox-files.ts'
import { sandboxRoutes } from './routes/sandboxes.ts'
import { secretRoutes } from './routes/secrets.ts'
import { snapshotRoutes } from './routes/snapshots.ts'
import { sshKeyRoutes } from './routes/ssh-keys.ts'
import { SandboxHosts } from './sandbox-hosts.ts'
import { SandboxPaths } from './sandbox-paths.ts'
import { PortProxy } from './sandbox-ports.ts'
import { parseStrictJson } from './strict-json.ts'
import { answerUpgrade } from './upgrade.ts'

/** More than the 16 KiB of Node, which counts the request line too. */
const maxHeaderBytes = 16 * 1024
const maxControlBodyBytes = 1024 * 1024

export type Routes = FastifyInstance<Server, IncomingMessage, ServerResponse, never, ZodTypeProvider>

export interface Gateway {
  url: string
  /** Takes no new connections, and ends those that are idle. */
  stopListening(): void
  close(): Promise<void>
}

/** Starts listening. Throws when the address is taken. */
export async function startGateway(options: GatewayOptions, parts: GatewayParts): Promise<Gateway> {
  const hosts = new SandboxHosts(options.sandboxDomain)
  const admission = new Admission(parts.keys, new RateLimit(options.rateLimit), (host) => hosts.has(host))
  const invokePaths = new InvokePaths({
    active: (caller, name) => parts.functions.active(caller, name),
    invoke: (version, request, sink) => parts.invoker.invoke(version, request, sink),
    borrow: (version, request, borrower) => parts.invoker.borrow(version, request, borrower),
    idempotency: parts.idempotency,
    maxPayloadBytes: options.maxPayloadBytes,
    websocket: options.websocket,
    onPlatformError: (error, { requestId, functionName, invocationId }) =>
      parts.log.warn({ err: error, request_id: requestId, function: functionName, invocation: invocationId }, 'invocation failed'),
  })
  const sandboxPaths = new SandboxPaths({ sandboxes: parts.sandboxes, snapshots: parts.snapshots, hosts, websocket: options.websocket })
  const e2bPorts = new PortProxy(new SandboxPorts(parts.sandboxes), options.websocket)
  const e2bTraffic = new E2bTraffic({ e2b: parts.e2b, builds: parts.e2bBuilds, hosts, ports: e2bPorts, admission })
  const upgrade = (request: IncomingMessage, socket: Duplex, head: Buffer) => {
    const response = answerUpgrade(request, socket)
    if (e2bTraffic.upgrade(request, response, socket, head)) return
    const caller = admission.admit(request, socket)
    if (caller instanceof ThawError) return respondError(response, caller)
    if (!hosts.has(request.headers.host)) dropApiPrefix(request)
    const { path, query } = splitUrl(request)
    if (sandboxPaths.upgrade(caller, path, query, request, response, socket, head)) return
    invokePaths.upgrade(caller, path, query, request, response, socket, head)
  }
  let server: Server | undefined
  const app = Fastify({
    // The log of requests is ours: one line an error, and metrics.
    logger: false,
    genReqId: () => newId('req'),
    bodyLimit: maxControlBodyBytes,
    routerOptions: { ignoreTrailingSlash: true, maxParamLength: 512 },
    serverFactory: (handler) => {
      const settings: ServerOptions & { shouldUpgradeCallback(request: IncomingMessage): boolean } = {
        maxHeaderSize: maxHeaderBytes,
        headersTimeout: options.headerTimeoutMs,
        requestTimeout: options.requestTimeoutMs,
        connectionsCheckingInterval: 1000,
        keepAliveTimeout: 65_000,
        noDelay: true,
        // Anything else that asks for another protocol is answered in this one (RFC 9110, 7.8).
        shouldUpgradeCallback: (request) => request.headers.upgrade?.toLowerCase() === 'websocket' || sandboxPaths.passesUpgrade(request),
      }
      server = createServer(settings, (request, response) => route(request, response, handler))
      server.maxConnections = options.maxConnections
      server.on('upgrade', upgrade)
      server.on('clientError', answerClientError)
      return server
    },
  })
  const route = (
    request: IncomingMessage,
    response: ServerResponse,
    control: (request: IncomingMessage, response: ServerResponse) => void,
  ) => {
    if (e2bTraffic.handle(request, response)) return
    // Under the host name of a port every path belongs to the server inside.
    const isHosted = hosts.has(request.headers.host)
    if (!isHosted) dropApiPrefix(request)
    const { path, query } = splitUrl(request)
    if (!isHosted && isOpenPath(path)) {
      const refused = parts.keys.required ? null : guardLoopback(request.headers.host, request.headers.origin)
      return refused === null ? control(request, response) : refuseUnread(request, response, refused)
    }
    const caller = admission.admit(request, response)
    if (caller instanceof ThawError) return (isE2bPath(path) ? respondE2bError : refuseUnread)(request, response, caller)
    if (!isHosted && invokePaths.handle(caller, path, query, request, response)) return
    if (sandboxPaths.handle(caller, path, query, request, response)) return
    rememberCaller(request, caller)
    control(request, response)
  }

  const table = new RouteTable()
  app.addHook('onRoute', (added) => table.add(added.method, added.url))
  app.addHook('onResponse', (request, reply, done) => {
    parts.metrics.request({
      route: request.routeOptions.url ?? 'none',
      method: request.method,
      status: reply.statusCode,
      duration_ms: reply.elapsedTime,
    })
    done()
  })
  app.setValidatorCompiler(validatorCompiler)
  app.setSerializerCompiler(serializerCompiler)
  readJsonStrictly(app)
  await app.register(multipart, {
    limits: { fileSize: options.maxArchiveBytes, files: 1, fields: 8, fieldSize: maxControlBodyBytes, headerPairs: 50 },
  })
  app.setErrorHandler((error: FastifyError, request, reply) => {
    const thaw = fromFastify(error)
    if (thaw.code === 'internal') parts.log.error({ err: error, request_id: request.id }, 'request failed')
    return reply.status(thaw.status).headers(retryAfter(thaw)).send(thaw.toBody(request.id))
  })
  app.setNotFoundHandler((request, reply) => {
    const path = request.url.split('?')[0] ?? '/'
    const methods = table.methodsOf(path)
    const error =
      methods.length > 0
        ? new ThawError('method_not_allowed', `${request.method} is not allowed here.`)
        : new ThawError('route_not_found', `There is nothing at ${JSON.stringify(path.slice(0, 200))}.`)
    if (methods.length > 0) reply.header('allow', methods.join(', '))
    return reply.status(error.status).send(error.toBody(request.id))
  })
  await describeApi(app)
  await app.register(async (scope) => {
    const routes = scope.withTypeProvider<ZodTypeProvider>() as unknown as Routes
    platformRoutes(routes, parts)
    functionRoutes(routes, parts, options)
    invocationRoutes(routes, parts)
    imageRoutes(routes, parts)
    poolRoutes(routes, parts)
    secretRoutes(routes, parts)
    keyRoutes(routes, parts)
    sandboxRoutes(routes, parts, options.websocket)
    sandboxFileRoutes(routes, parts)
    snapshotRoutes(routes, parts)
    sshKeyRoutes(routes, parts)
    await registerE2b(
      routes,
      { ...parts, templates: parts.e2bTemplates, builds: parts.e2bBuilds, sandboxDomain: options.sandboxDomain },
      fromFastify,
    )
  })
  await app.ready()
  await listen(app.server, options)
  const { address, port, family } = app.server.address() as AddressInfo
  return {
    url: `http://${family === 'IPv6' ? `[${address}]` : address}:${port}`,
    stopListening: () => {
      app.server.close()
      app.server.closeIdleConnections()
    },
    close: async () => {
      app.server.closeAllConnections()
      invokePaths.close()
      e2bPorts.close()
      await sandboxPaths.close()
      await app.close()
    },
  }
}

function dropApiPrefix(request: IncomingMessage): void {
  if (request.url?.startsWith('/api/v1/')) request.url = request.url.slice(4)
}

function splitUrl(request: IncomingMessage): { path: string; query: string } {
  const url = request.url ?? '/'
  const mark = url.indexOf('?')
  return mark < 0 ? { path: url, query: '' } : { path: url.slice(0, mark), query: url.slice(mark + 1) }
}

function listen(server: Server, { host, port }: GatewayOptions): Promise<void> {
  return new Promise((resolve, reject) => {
    const fail = (error: NodeJS.ErrnoException) => {
      const taken = error.code === 'EADDRINUSE'
      reject(
        new ThawError(
          'config_invalid',
          taken ? `Port ${port} on ${host} is taken.` : `Cannot listen on ${host}:${port}: ${error.message}`,
          {
            fix: taken ? 'Stop what listens there, or choose another port with --port (0: any).' : 'Choose another host or port.',
            cause: error,
          },
        ),
      )
    }
    server.once('error', fail)
    server.listen({ host, port, backlog: 4096 }, () => {
      server.off('error', fail)
      resolve()
    })
  })
}

/** Bodies of the control API: strict JSON, or nothing. */
function readJsonStrictly(app: FastifyInstance): void {
  app.removeAllContentTypeParsers()
  app.addContentTypeParser(['application/json'], { parseAs: 'buffer' }, (_request, body, done) => {
    if (body.length === 0) return done(null, undefined)
    try {
      done(null, parseStrictJson(body as Buffer))
    } catch (error) {
      done(error as Error)
    }
  })
}

function fromFastify(error: FastifyError): ThawError {
  if (error instanceof ThawError) return error
  if (hasZodFastifySchemaValidationErrors(error)) {
    const issues = error.validation.map((issue) => ({ path: issue.instancePath, message: issue.message ?? 'invalid' }))
    const first = issues[0]
    const where = first?.path ? `${first.path.slice(1).replaceAll('/', '.')}: ` : ''
    return new ThawError('invalid_request', `The request does not fit the schema. ${where}${first?.message ?? ''}`, { details: { issues } })
  }
  switch (error.code) {
    case 'FST_ERR_CTP_BODY_TOO_LARGE':
    case 'FST_REQ_FILE_TOO_LARGE':
      return new ThawError('archive_too_large', 'The body is larger than allowed.')
    case 'FST_ERR_CTP_INVALID_MEDIA_TYPE':
      return new ThawError('unsupported_media_type')
    case 'FST_ERR_CTP_INVALID_CONTENT_LENGTH':
      return new ThawError('invalid_request', 'The body is shorter than its Content-Length.')
  }
  if (typeof error.statusCode === 'number' && error.statusCode >= 400 && error.statusCode < 500)
    return new ThawError('invalid_request', error.message)
  return toThawError(error)
}

/** What Node could not read as a request. It has no response object: the answer is written by hand. */
function answerClientError(error: NodeJS.ErrnoException, socket: Socket): void {
  if (!socket.writable || socket.destroyed) return
  const thaw =
    error.code === 'HPE_HEADER_OVERFLOW'
      ? new ThawError('header_fields_too_large')
      : error.code === 'ERR_HTTP_REQUEST_TIMEOUT'
        ? new ThawError('request_timeout')
        : new ThawError('invalid_request', 'This is not a valid HTTP request.')
  const body = JSON.stringify(thaw.toBody(newId('req')))
  socket.end(
    `HTTP/1.1 ${thaw.status} ${STATUS_CODES[thaw.status]}\r\ncontent-type: application/json; charset=utf-8\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`,
  )
}
