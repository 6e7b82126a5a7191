import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { startServer, type TestServer, whyNoDriver } from '../support/server.ts'

/**
 * The runtimes that AWS publishes for the Lambda Runtime API, unmodified, installed by the deploy as dependencies of a
 * function: awslambdaric (Python), aws-lambda-go, aws-lambda-ric (Node.js).
 */
function folder(files: Record<string, string>): string {
  const dir = mkdtempSync(join(tmpdir(), 'thaw-lambda-'))
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(dirname(join(dir, name)), { recursive: true })
    writeFileSync(join(dir, name), content)
  }
  return dir
}

const python = `
import sys

def handler(event, context):
    if event.get("fail"):
        raise ValueError("no " + event["fail"])
    if event.get("hang"):
        import time
        time.sleep(600)
    print("said", event)
    return {
        "got": event,
        "id": context.aws_request_id,
        "arn": context.invoked_function_arn,
        "function": context.function_name,
        "version": context.function_version,
        "memory": context.memory_limit_in_mb,
        "left": context.get_remaining_time_in_millis(),
    }
`

const go = `package main

import (
	"context"
	"errors"
	"strings"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"
)

type event struct {
	Name string
	Fail string
	Panic bool
}

type answer struct {
	Greeting string
	ID string
	Function string
}

type refusal struct{ what string }

func (r refusal) Error() string { return "no " + r.what }

func handler(ctx context.Context, in event) (any, error) {
	if in.Fail != "" {
		return nil, refusal{in.Fail}
	}
	if in.Panic {
		panic(errors.New("panicked"))
	}
	if in.Name == "stream" {
		return strings.NewReader("streamed"), nil
	}
	call, _ := lambdacontext.FromContext(ctx)
	return answer{"hello " + in.Name, call.AwsRequestID, lambdacontext.FunctionName}, nil
}

func main() { lambda.Start(handler) }
`

const node = `
export const handler = async (event, context) => {
  if (event.fail) throw new RangeError('no ' + event.fail)
  console.log('said', event)
  return { got: event, id: context.awsRequestId, function: context.functionName, left: context.getRemainingTimeInMillis() }
}
export const stream = awslambda.streamifyResponse(async (event, output) => {
  output = awslambda.HttpResponseStream.from(output, { statusCode: 201, headers: { 'content-type': 'text/html', 'x-mine': '1' } })
  output.write('<p>')
  output.write('hello')
  output.end()
})
`

interface Answer {
  got: unknown
  id: string
  left: number
}

for (const driver of ['process', 'oci'] as const) {
  const skip = await whyNoDriver(driver)

  describe.skipIf(skip !== null)(`clients of the Lambda Runtime API over ${driver}${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
    let server: TestServer

    beforeAll(async () => {
      server = await startServer({ driver })
    })
    afterAll(() => server[Symbol.asyncDispose]())

    const invoke = (name: string, payload: unknown) => server.thaw.functions.invoke<Answer>(name, payload as never)

    test('awslambdaric: answers, context, errors, time limit', async () => {
      const config = {
        runtime: 'python' as const,
        contract: 'custom' as const,
        command: ['python3', '-m', 'awslambdaric', 'main.handler'],
        timeout_ms: 5000,
      }
      const dir = folder({ 'requirements.txt': 'awslambdaric\n', 'main.py': python })
      await server.thaw.functions.create({ name: 'python', ...config, code: { dir } })
      const { value, invocation_id } = await invoke('python', { a: 1 })
      expect(value).toMatchObject({
        got: { a: 1 },
        id: invocation_id,
        arn: 'arn:aws:lambda:local:000000000000:function:python',
        function: 'python',
        version: '1',
        memory: '128',
      })
      expect(value.left).toBeGreaterThan(0)
      expect(value.left).toBeLessThanOrEqual(5000)
      const failed = invoke('python', { fail: 'luck' })
      await expect(failed).rejects.toMatchObject({
        code: 'function_failed',
        details: { type: 'ValueError', message: 'no luck', stack: expect.stringContaining('main.py') },
      })
      expect((await invoke('python', { b: 2 })).boot_method).toBe('reused')
      await expect(invoke('python', { hang: true })).rejects.toMatchObject({ code: 'timed_out' })
      const broken = folder({ 'requirements.txt': 'awslambdaric\n', 'main.py': 'raise RuntimeError("at import")' })
      await expect(server.thaw.functions.create({ name: 'broken', ...config, code: { dir: broken } })).rejects.toMatchObject({
        code: 'handler_invalid',
        details: { type: 'RuntimeError', message: 'at import' },
      })
    }, 300_000)

    test('aws-lambda-go: answers, errors, panics, a reader as a stream', async () => {
      const dir = folder({ 'go.mod': 'module example\n\ngo 1.18\n\nrequire github.com/aws/aws-lambda-go v1.47.0\n', 'main.go': go })
      await server.thaw.functions.create({ name: 'golang', runtime: 'go', contract: 'custom', code: { dir } })
      const { value, invocation_id } = await invoke('golang', { Name: 'thaw' })
      expect(value).toEqual({ Greeting: 'hello thaw', ID: invocation_id, Function: 'golang' })
      await expect(invoke('golang', { Fail: 'luck' })).rejects.toMatchObject({
        code: 'function_failed',
        details: { type: 'refusal', message: 'no luck' },
      })
      const streamed = await fetch(`${server.url}/v1/functions/golang/invoke`, { method: 'POST', body: '{"Name":"stream"}' })
      expect(await streamed.text()).toBe('streamed')
      // It reports a panic with its stack, and ends.
      await expect(invoke('golang', { Panic: true })).rejects.toMatchObject({
        code: 'function_failed',
        details: { message: 'panicked', stack: expect.stringContaining('main.go') },
      })
      expect((await invoke('golang', { Name: 'again' })).value).toMatchObject({ Greeting: 'hello again' })
    }, 300_000)
  })
}

const missing = nodeBuildMissing()

// Its installation compiles curl and C++; the image node has no compiler, this machine may have one.
test.skipIf(missing !== null)(
  `aws-lambda-ric over process: answers, context, errors, streamed responses${missing === null ? '' : ` (skipped: ${missing})`}`,
  async () => {
    await using server = await startServer({ driver: 'process', builds: { env: { npm_config_nodedir: '/usr' } } })
    const dir = folder({ 'package.json': '{"name":"ric","dependencies":{"aws-lambda-ric":"4.0.2"}}', 'index.mjs': node })
    const config = { runtime: 'node' as const, contract: 'custom' as const, code: { dir } }
    await server.thaw.functions.create({ name: 'node', ...config, command: ['aws-lambda-ric'], handler: 'index.handler' })
    const { value, invocation_id } = await server.thaw.functions.invoke<Answer>('node', { a: 1 })
    expect(value).toMatchObject({ got: { a: 1 }, id: invocation_id, function: 'node' })
    expect(value.left).toBeGreaterThan(0)
    await expect(server.thaw.functions.invoke('node', { fail: 'luck' })).rejects.toMatchObject({
      code: 'function_failed',
      details: { type: 'RangeError', message: 'no luck', stack: expect.stringContaining('index.mjs') },
    })
    await server.thaw.functions.create({ name: 'stream', ...config, command: ['aws-lambda-ric'], handler: 'index.stream' })
    const streamed = await fetch(`${server.url}/fn/stream/`)
    expect([streamed.status, streamed.headers.get('content-type'), streamed.headers.get('x-mine')]).toEqual([201, 'text/html', '1'])
    expect(await streamed.text()).toBe('<p>hello')
  },
  600_000,
)

function nodeBuildMissing(): string | null {
  for (const program of ['cmake', 'g++', 'make', 'xz', 'python3']) {
    if (spawnSync('sh', ['-c', `command -v ${program}`]).status !== 0) return `no ${program} on this machine`
  }
  // node-gyp would fetch them from the makers of Node.js.
  return existsSync('/usr/include/node/node_api.h') ? null : 'no headers of Node.js on this machine'
}
