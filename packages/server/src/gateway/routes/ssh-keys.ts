import { createdSshKeyItemSchema, itemOf, listOf, sshKeyCreateSchema, sshKeyItemSchema, sshKeyRotateSchema } from '@thaw/protocol'
import { z } from 'zod'
import { callerOf } from '../auth.ts'
import type { GatewayParts } from '../parts.ts'
import type { Routes } from '../server.ts'

const tags = ['ssh-keys']
const params = z.object({ id: z.string().max(64) })

export function sshKeyRoutes(app: Routes, { sshKeys }: GatewayParts): void {
  app.post(
    '/v1/ssh-keys',
    {
      schema: {
        summary: 'Register a public key, or have a key pair made; its private key is shown this once',
        tags,
        body: sshKeyCreateSchema,
        response: { 201: itemOf(createdSshKeyItemSchema) },
      },
    },
    async (request, reply) => reply.status(201).send({ item: await sshKeys.create(callerOf(request), request.body) }),
  )

  app.get('/v1/ssh-keys', { schema: { summary: 'List SSH keys', tags, response: { 200: listOf(sshKeyItemSchema) } } }, async (request) => ({
    items: sshKeys.list(callerOf(request)),
    next: null,
  }))

  app.get(
    '/v1/ssh-keys/:id',
    { schema: { summary: 'One SSH key', tags, params, response: { 200: itemOf(sshKeyItemSchema) } } },
    async (request) => ({ item: sshKeys.get(callerOf(request), request.params.id) }),
  )

  app.post(
    '/v1/ssh-keys/:id/rotate',
    {
      schema: {
        summary: 'Put another key in the place of this one',
        description: 'The old key opens nothing from then on, and connections that were opened with it are closed.',
        tags,
        params,
        body: sshKeyRotateSchema,
        response: { 200: itemOf(createdSshKeyItemSchema) },
      },
    },
    async (request) => ({ item: await sshKeys.rotate(callerOf(request), request.params.id, request.body) }),
  )

  app.delete(
    '/v1/ssh-keys/:id',
    {
      schema: {
        summary: 'Revoke an SSH key',
        description: 'It opens nothing from then on, and connections that were opened with it are closed.',
        tags,
        params,
        response: { 204: z.null() },
      },
    },
    async (request, reply) => {
      await sshKeys.revoke(callerOf(request), request.params.id)
      return reply.status(204).send(null)
    },
  )
}
