import { expect, test } from 'vitest'
import { createMetrics } from './metrics.ts'

const timing = { queue_ms: 1, boot_ms: 20, init_ms: 30, run_ms: 4 }

test('invocations are counted by status, boot method and trigger, and timed by stage', async () => {
  const metrics = createMetrics()
  metrics.invocation({ status: 'succeeded', boot_method: 'cold', trigger: 'invoke', timing })
  metrics.invocation({ status: 'succeeded', boot_method: 'reused', trigger: 'invoke', timing })
  metrics.invocation({ status: 'cancelled', boot_method: null, trigger: 'http', timing: null })
  const { text } = await metrics.render()
  expect(text).toContain('thaw_invocations_total{status="succeeded",boot_method="cold",trigger="invoke"} 1')
  expect(text).toContain('thaw_invocations_total{status="cancelled",boot_method="none",trigger="http"} 1')
  expect(text).toContain('thaw_invocation_stage_duration_seconds_count{stage="run"} 2')
  expect(text).toContain('thaw_invocation_stage_duration_seconds_count{stage="boot"} 1')
  expect(text).toContain('thaw_invocation_stage_duration_seconds_bucket{le="0.025",stage="boot"} 1')
})

test('what others choose cannot make series without end', async () => {
  const metrics = createMetrics()
  for (let index = 0; index < 1000; index++) {
    metrics.request({ route: `/r${index}`, method: `M${index}`, status: 200, duration_ms: 1 })
    metrics.bootFallback('warm', `reason ${index}`)
  }
  metrics.bootFallback('pooled', 'start_failed')
  const { text } = await metrics.render()
  expect(text.match(/^thaw_http_requests_total\{/gm)).toHaveLength(201)
  expect(text).toContain('thaw_http_requests_total{route="other",method="other",status="200"} 800')
  expect(text).toContain('thaw_boot_fallbacks_total{boot_method="warm",reason="other"} 1000')
  expect(text).toContain('thaw_boot_fallbacks_total{boot_method="pooled",reason="start_failed"} 1')
})

test('instances are counted when they are asked for, and two servers do not share anything', async () => {
  const [one, other] = [createMetrics(), createMetrics()]
  let idle = 1
  one.observeInstances(() => ({ starting: 0, idle, busy: 2 }))
  one.recordsDropped(7)
  idle = 5
  const { text, contentType } = await one.render()
  expect(text).toContain('thaw_instances{state="idle"} 5')
  expect(text).toContain('thaw_records_dropped_total 7')
  expect(text).toContain('process_cpu_seconds_total')
  expect(contentType).toContain('text/plain')
  expect((await other.render()).text).not.toContain('thaw_instances{')
})
