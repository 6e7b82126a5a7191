import { Thaw } from '@thaw/sdk'
import { expect, test } from 'vitest'
import { codeOf, sendRaw } from '../support/http.ts'
import { startServer } from '../support/server.ts'

const limits = { requests_per_second: 1, request_burst: 5 }

test('fault 14: a flood is 429 with Retry-After, on every path but those of the load balancer', async () => {
  await using server = await startServer({ driver: 'process', pools: { size: 0 }, limits })
  const answers = await Promise.all(Array.from({ length: 20 }, () => fetch(`${server.url}/v1/functions`)))
  const refused = answers.filter((answer) => answer.status === 429)
  expect(refused.length).toBeGreaterThanOrEqual(10)
  expect(refused.length).toBeLessThanOrEqual(15)
  expect(Number(refused[0]?.headers.get('retry-after'))).toBeGreaterThanOrEqual(1)
  expect(await refused[0]?.json()).toMatchObject({ error: { code: 'rate_limited', fix: expect.stringContaining('Retry-After') } })
  expect((await fetch(`${server.url}/fn/nope/`)).status).toBe(429)
  for (let i = 0; i < 20; i++) expect((await fetch(`${server.url}/health`)).status).toBe(200)
})

test('fault 14: who is over the limit is refused before the body is read', async () => {
  await using server = await startServer({ driver: 'process', pools: { size: 0 }, limits })
  for (let i = 0; i < 5; i++) await fetch(`${server.url}/v1/functions`)
  // The body never comes: whoever waited for it would answer 408.
  const head = 'POST /v1/functions/f/invoke HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n'
  const answer = await sendRaw(server.url, head)
  expect(answer).toMatchObject({ status: 429, closed: true })
  expect(codeOf(answer)).toBe('rate_limited')
})

test('fault 14: keys have limits of their own, and strangers share that of their address', async () => {
  await using server = await startServer({ driver: 'process', pools: { size: 0 }, limits: { ...limits, request_burst: 10 } })
  const first = await server.thaw.keys.create({ name: 'a' })
  const admin = new Thaw({ url: server.url, apiKey: first.key })
  const { key } = await admin.keys.create({ name: 'b' })
  const flood = (apiKey: string) =>
    Promise.all(
      Array.from({ length: 30 }, () => fetch(`${server.url}/v1/functions`, { headers: { 'x-api-key': apiKey } }).then((r) => r.status)),
    )
  expect(await flood('nobody')).toContain(429)
  expect((await flood('nobody')).every((status) => status === 429 || status === 401)).toBe(true)
  const own = await flood(key)
  expect(own.filter((status) => status === 200).length).toBeGreaterThanOrEqual(10)
  expect(own).toContain(429)
  expect((await fetch(`${server.url}/v1/functions`, { headers: { 'x-api-key': first.key } })).status).toBe(200)
})
