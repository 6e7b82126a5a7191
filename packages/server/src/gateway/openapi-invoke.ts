import { errorBodySchema, invokeModes } from '@thaw/protocol'
import { z } from 'zod'

const name = { name: 'name', in: 'path', required: true, schema: { type: 'string' } }
const error = {
  description: 'An error; its code says which.',
  content: { 'application/json': { schema: z.toJSONSchema(errorBodySchema) } },
}
const answer = {
  description: 'What the function answered, as it is.',
  headers: {
    'Thaw-Invocation-Id': { schema: { type: 'string' } },
    'Thaw-Boot-Method': { schema: { type: 'string', enum: ['cold', 'pooled', 'warm', 'reused'] } },
    'Server-Timing': { schema: { type: 'string' }, description: 'Milliseconds of queue, boot, init and run.' },
  },
  content: { '*/*': {} },
}

/** The invoke paths, which the framework does not serve and so cannot describe. */
export const invokePathsDescription = {
  '/v1/functions/{name}/invoke': {
    post: {
      summary: 'Invoke a function',
      tags: ['invocations'],
      parameters: [
        name,
        { name: 'Thaw-Mode', in: 'header', schema: { type: 'string', enum: [...invokeModes], default: 'sync' } },
        { name: 'Idempotency-Key', in: 'header', schema: { type: 'string', pattern: '^[\\x21-\\x7e]{1,255}$' } },
        { name: 'Thaw-Timeout-Ms', in: 'header', schema: { type: 'integer', minimum: 1, maximum: 86_400_000 } },
      ],
      requestBody: { content: { '*/*': {} } },
      responses: { 200: answer, default: error },
    },
  },
  '/fn/{name}/{path}': Object.fromEntries(
    ['get', 'head', 'post', 'put', 'patch', 'delete', 'options'].map((method) => [
      method,
      {
        summary: 'HTTP trigger: any method, any path',
        description: 'A function with the http contract gets the request as it is, WebSockets (GET with Upgrade) included.',
        tags: ['invocations'],
        parameters: [name, { name: 'path', in: 'path', required: true, schema: { type: 'string' } }],
        responses: { default: answer },
      },
    ]),
  ),
}
