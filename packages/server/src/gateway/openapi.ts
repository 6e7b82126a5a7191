import swagger from '@fastify/swagger'
import swaggerUi from '@fastify/swagger-ui'
import type { FastifyInstance } from 'fastify'
import { jsonSchemaTransform } from 'fastify-type-provider-zod'
import { version } from '../version.ts'
import { invokePathsDescription } from './openapi-invoke.ts'

/** `/openapi.json` and `/docs`, from the schemas that validate. Register before the routes. */
export async function describeApi(app: FastifyInstance): Promise<void> {
  await app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: {
        title: 'thaw',
        version,
        description: 'Functions and sandboxes on your own machines.',
        license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
      },
      // The paths that work below the framework are not seen by it.
      paths: invokePathsDescription as never,
    },
    transform: jsonSchemaTransform,
  })
  await app.register(swaggerUi, { routePrefix: '/docs' })
  app.get('/openapi.json', { schema: { hide: true } }, () => app.swagger())
}
