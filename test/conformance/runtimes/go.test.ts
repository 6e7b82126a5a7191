import { execFile } from 'node:child_process'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { frameTypes } from '@thaw/protocol'
import { afterAll, describe, expect, test } from 'vitest'
import { RuntimeProcess } from './harness.ts'
import { CodeFolders, describeRuntime, type RuntimeAdapter, startLoaded } from './suite.ts'

const run = promisify(execFile)
const runtimeDir = join(import.meta.dirname, '../../../runtimes/go')
const path = `${process.env.PATH}:/usr/local/go/bin`

/** A program with these declarations that serves `handler`. Imports what it uses. */
function program(declarations: string, handler = 'handler'): string {
  const packages = ['bufio', 'context', 'encoding/json', 'errors', 'fmt', 'log', 'net', 'os', 'runtime', 'strings', 'time', 'thaw/function']
  const whole = `${declarations}\nfunc main() { function.Start(${handler}) }\n`
  const used = packages.filter((name) => new RegExp(`\\b${name.split('/').at(-1)}\\.`).test(whole))
  return `package main\n\nimport (\n${used.map((name) => `\t"${name}"\n`).join('')})\n\n${whole}`
}

const gate = `
func gate(ctx context.Context) error {
	connection, err := net.Dial("tcp", "127.0.0.1:"+os.Getenv("GATE_PORT"))
	if err != nil {
		return err
	}
	defer connection.Close()
	opened := make(chan error, 1)
	go func() {
		_, err := connection.Read(make([]byte, 1))
		opened <- err
	}()
	select {
	case err := <-opened:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
`

const go: RuntimeAdapter = {
  name: 'Go',
  runtime: 'go',
  runtimeDir,
  file: 'main.go',
  handler: 'main',
  errorType: '*main.OrderError',
  command: (codeDir) => [join(codeDir, '.thaw/bin/function')],
  // As the builder does it (packages/server/src/control/builds.ts).
  async prepare(codeDir) {
    const options = { cwd: codeDir, env: { ...process.env, PATH: path, CGO_ENABLED: '0', GOFLAGS: '-mod=mod', GOTOOLCHAIN: 'local' } }
    await run('go', ['mod', 'init', 'function'], options)
    await run('go', ['mod', 'edit', '-require=thaw@v0.0.0', `-replace=thaw=${runtimeDir}`], options)
    await mkdir(join(codeDir, '.thaw/bin'), { recursive: true })
    await run('go', ['build', '-trimpath', '-buildvcs=false', '-ldflags=-s -w', '-o', '.thaw/bin/function', '.'], options)
  },
  programs: {
    echo: program('func handler(event any) (any, error) { return event, nil }'),
    withoutArguments: program('func handler() (string, error) { return "none", nil }'),
    stream: program(`
func handler() (function.Stream, error) {
	return func(yield func(any) error) error {
		for _, word := range []string{"one", "two", "three"} {
			if err := yield(word); err != nil {
				return err
			}
		}
		return nil
	}, nil
}`),
    lines: program(`
func handler() (any, error) {
	return function.Stream(func(yield func(any) error) error {
		for n := 1; n <= 2; n++ {
			if err := yield(map[string]int{"n": n}); err != nil {
				return err
			}
		}
		return nil
	}), nil
}`),
    gatedStream: program(`${gate}
func handler(ctx context.Context) (function.Stream, error) {
	return func(yield func(any) error) error {
		if err := yield("before"); err != nil {
			return err
		}
		if err := gate(ctx); err != nil {
			return err
		}
		return yield("after")
	}, nil
}`),
    failingStream: program(`
func handler() (function.Stream, error) {
	return func(yield func(any) error) error {
		if err := yield("one"); err != nil {
			return err
		}
		return errors.New("broken off")
	}, nil
}`),
    // A returned error has no stack; a panic has.
    error: program(`
type OrderError struct{}

func (*OrderError) Error() string { return "no such order" }

//go:noinline
func find_order() string { panic(&OrderError{}) }

func handler(event any) (string, error) { return find_order(), nil }`),
    unencodable: program('func handler() (any, error) { return map[string]any{"value": make(chan int)}, nil }'),
    exit: program('func handler() (any, error) { runtime.Goexit(); return nil, nil }'),
    notCallable: program('var handler = 1'),
    logs: program(`
func handler() (string, error) {
	fmt.Println("out")
	fmt.Fprintln(os.Stderr, "err")
	fmt.Print("partial")
	return "done", nil
}`),
    logsAtLoad: program(`
func init() { fmt.Println("loading") }

func handler(event any) (any, error) { return event, nil }`),
    gated: program(`${gate}
func handler(event any) (any, error) { return event, gate(context.Background()) }`),
    gatedAsync: program(`${gate}
func handler(ctx context.Context, event any) (any, error) { return event, gate(ctx) }`),
    httpAnswer: program(`
func handler() (any, error) {
	headers := map[string]string{"content-type": "text/html", "x-answer": "yes"}
	return map[string]any{"status": 201, "headers": headers, "body": "<p>made</p>"}, nil
}`),
    httpBase64: program(`
type answer struct {
	StatusCode int    \`json:"statusCode"\`
	Base64     bool   \`json:"isBase64Encoded"\`
	Body       string \`json:"body"\`
}

func handler() (answer, error) { return answer{200, true, "AAEC/w=="}, nil }`),
    context: program(`
func handler(ctx context.Context) (any, error) {
	invocation := function.FromContext(ctx)
	deadline, _ := ctx.Deadline()
	return []any{
		invocation.InvocationID, invocation.Attempt, invocation.FunctionName, invocation.FunctionVersion,
		invocation.MemoryLimitMib, time.Until(deadline).Milliseconds(),
	}, nil
}`),
    marker: program(`
var marked = os.WriteFile(os.Getenv("MARKER"), nil, 0o600)

func handler(event any) (any, error) { return event, marked }`),
    env: program(`
var greeting = os.Getenv("GREETING")

func handler() (string, error) { return greeting, nil }`),
    hooks: program(`
var called []string

func init() {
	function.BeforeSnapshot(func() error {
		called = append(called, "before_snapshot")
		return nil
	})
	function.AfterRestore(func() error {
		called = append(called, "after_restore")
		return nil
	})
}

func handler() ([]string, error) { return called, nil }`),
    failingHook: program(`
func init() { function.BeforeSnapshot(func() error { return errors.New("cannot close") }) }

func handler(event any) (any, error) { return event, nil }`),
  },
}

describeRuntime(go)

const json = 'application/json'
const http = { method: 'PUT', path: '/a/b', query: 'x=1&x=2', headers: { 'x-from': 'test' } }

describe('Go alone', () => {
  const folders = new CodeFolders(go)
  afterAll(() => folders[Symbol.asyncDispose]())
  const start = async (main: string, concurrency = 1) => startLoaded(go, await folders.of(main), { concurrency })

  const typed = program(`
type order struct {
	ID    string   \`json:"id"\`
	Items []string \`json:"items"\`
}

func handler(ctx *function.Context, event order) (map[string]any, error) {
	return map[string]any{"id": event.ID, "items": len(event.Items), "attempt": ctx.Attempt}, nil
}`)

  test('a struct is decoded from JSON, and the handler may take a *function.Context', async () => {
    await using runtime = await start(typed)
    const { body } = await runtime.invokeJson({ id: 'a', items: ['x', 'y'], more: 1 }).answer()
    expect(JSON.parse(body.toString())).toEqual({ id: 'a', items: 2, attempt: 1 })
    expect(JSON.parse((await runtime.invoke().answer()).body.toString())).toEqual({ id: '', items: 0, attempt: 1 })
  })

  test('a payload that does not fit the type of the event blames the caller', async () => {
    await using runtime = await start(typed)
    for (const [body, contentType] of [
      ['{"id":1}', json],
      ['text', 'text/plain'],
      ['\xff', 'image/png'],
    ] as const) {
      expect((await runtime.invoke(body, { contentType }).answer()).failed).toMatchObject({
        reason: 'invalid_payload',
        type: 'PayloadError',
      })
    }
    expect((await runtime.invokeJson({ id: 'b' }).answer()).failed).toBeUndefined()
  })

  test('a string event is the text, []byte the body as it came, json.RawMessage the JSON', async () => {
    await using text = await start(program('func handler(event string) (string, error) { return strings.ToUpper(event), nil }'))
    expect((await text.invokeJson('ab').answer()).body.toString()).toBe('AB')
    expect((await text.invoke('a b', { contentType: 'text/plain' }).answer()).body.toString()).toBe('A B')
    expect((await text.invoke('17').answer()).body.toString()).toBe('17')
    expect((await text.invokeJson({}).answer()).failed?.reason).toBe('invalid_payload')
    await using bytes = await start(program('func handler(event []byte) ([]byte, error) { return event, nil }'))
    expect((await bytes.invoke(' [1] ', { contentType: json }).answer()).body.toString()).toBe(' [1] ')
    await using raw = await start(program('func handler(event json.RawMessage) (json.RawMessage, error) { return event, nil }'))
    expect((await raw.invoke('[1.50]', { contentType: json }).answer()).body.toString()).toBe('[1.50]')
    expect((await raw.invoke('t', { contentType: 'text/plain' }).answer()).body.toString()).toBe('"t"')
  })

  test('a handler may return only an error, or nothing', async () => {
    await using failing = await start(program('func handler(event int) error { return fmt.Errorf("%d: %w", event, os.ErrNotExist) }'))
    expect((await failing.invokeJson(7).answer()).failed).toMatchObject({ reason: 'error', message: '7: file does not exist' })
    await using silent = await start(program('func handler() {}'))
    expect((await silent.invokeJson(7).answer()).body.toString()).toBe('null')
  })

  test('the type of a failure is that of the wrapped error', async () => {
    await using runtime = await start(
      program(`
func handler(path string) error {
	_, err := os.Open(path)
	return fmt.Errorf("configuration: %w", err)
}`),
    )
    expect((await runtime.invokeJson('/nowhere').answer()).failed).toMatchObject({
      type: '*fs.PathError',
      message: 'configuration: open /nowhere: no such file or directory',
    })
  })

  test('a panic fails its invocation with the frames of the user, and the instance goes on', async () => {
    await using runtime = await start(
      program(`
//go:noinline
func at(list []int, index int) int { return list[index] }

func handler(event any) (any, error) {
	switch index := event.(type) {
	case float64:
		return at([]int{7}, int(index)), nil
	case string:
		panic(index)
	}
	var none map[string]int
	none["a"] = 1
	return nil, nil
}`),
    )
    const { failed } = await runtime.invokeJson(3).answer()
    expect(failed).toMatchObject({ type: 'runtime.boundsError', message: expect.stringContaining('index out of range [3]') })
    expect(failed?.stack).toMatch(/^main\.at\n\tfunction\/main\.go:\d+\nmain\.handler\n\tfunction\/main\.go:\d+$/)
    expect((await runtime.invokeJson('boom').answer()).failed).toMatchObject({ type: 'panic', message: 'boom' })
    expect((await runtime.invoke().answer()).failed?.message).toContain('nil map')
    expect((await runtime.invokeJson(0).answer()).body.toString()).toBe('7')
  })

  test('an HTTP request comes as function.Request, and function.Response answers it', async () => {
    await using runtime = await start(
      program(`
func handler(request function.Request) (function.Response, error) {
	if request.Method == "" {
		return function.Response{Body: request.Body}, nil
	}
	return function.Response{
		Status:  207,
		Headers: map[string]string{"X-Path": request.Path, "Content-Type": "text/csv"},
		Cookies: []string{"a=1", "b=2"},
		Body:    request.Query["x"] + request.Headers["x-from"] + string(request.Body),
	}, nil
}`),
    )
    const answer = await runtime.invoke('!', { http }).answer()
    expect(answer.meta).toEqual({
      status: 207,
      content_type: 'text/csv',
      more: false,
      headers: { 'x-path': '/a/b', 'set-cookie': ['a=1', 'b=2'] },
    })
    expect(answer.body.toString()).toBe('2test!')
    expect((await runtime.invoke('plain').answer()).body.toString()).toBe('plain')
  })

  test('a function.Response may stream, with a content type of its own', async () => {
    await using runtime = await start(
      program(`
func handler() (function.Response, error) {
	events := function.Stream(func(yield func(any) error) error { return yield("data: 1\\n\\n") })
	return function.Response{Headers: map[string]string{"content-type": "text/event-stream"}, Body: events}, nil
}`),
    )
    const answer = await runtime.invoke('', { http }).answer()
    expect(answer.meta).toMatchObject({ status: 200, content_type: 'text/event-stream', more: true })
    expect(answer.chunks.map(String)).toEqual(['data: 1\n\n'])
  })

  test('an answer that the worker would refuse is a failure of the code', async () => {
    await using runtime = await start(
      program(`
func handler(request function.Request) (function.Response, error) {
	switch string(request.Body) {
	case "status":
		return function.Response{Status: 42}, nil
	case "name":
		return function.Response{Headers: map[string]string{"a b": "c"}}, nil
	case "value":
		return function.Response{Headers: map[string]string{"a": "b\\r\\nc: d"}}, nil
	case "large":
		return function.Response{Headers: map[string]string{"a": strings.Repeat("b", 10000)}}, nil
	}
	panic(strings.Repeat("\\x01", 1<<20))
}`),
    )
    for (const body of ['status', 'name', 'value', 'large', 'message'])
      expect((await runtime.invoke(body, { http }).answer()).failed?.reason, body).toBe('error')
  })

  test('a stream that is cancelled hears of it from yield', async () => {
    await using runtime = await start(
      program(`
func handler() (function.Stream, error) {
	return func(yield func(any) error) error {
		for {
			if err := yield("more "); err != nil {
				fmt.Println("stopped:", err)
				return err
			}
		}
	}, nil
}`),
    )
    const invocation = runtime.invoke()
    expect((await invocation.next()).type).toBe(frameTypes.result)
    invocation.cancel()
    const logs: string[] = []
    for (;;) {
      const frame = await invocation.next()
      if (frame.type === frameTypes.log) logs.push(frame.payload.toString('utf8', 1))
      if (frame.type !== frameTypes.failed) continue
      expect(JSON.parse(frame.payload.toString()).reason).toBe('cancelled')
      break
    }
    expect(logs).toEqual(['stopped: the invocation was cancelled\n'])
  })

  test('the context ends at the deadline', async () => {
    await using runtime = await start(
      program(`
func handler(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}`),
    )
    const { failed } = await runtime.invoke('', { deadlineMs: Date.now() + 20 }).answer()
    expect(failed).toMatchObject({ reason: 'error', message: 'context deadline exceeded' })
  })

  test('package log, loggers made at load, and long lines are logged with their invocation', async () => {
    await using runtime = await start(
      program(`
var logger = log.New(os.Stdout, "own ", 0)

func init() { log.SetFlags(0) }

func handler() error {
	fmt.Fprintln(os.Stderr, "first")
	log.Print("second")
	logger.Print(strings.Repeat("ü", 10000))
	return nil
}`),
    )
    const { logs } = await runtime.invoke().answer()
    const text = (source: string) => logs.filter((line) => line.source === source).map((line) => line.text)
    expect(text('stderr')).toEqual(['first\n', 'second\n'])
    expect(text('stdout').map((line) => Buffer.byteLength(line))).toEqual([16_384, 3621])
    expect(text('stdout').join('')).toBe(`own ${'ü'.repeat(10_000)}\n`)
  })

  test('output of two invocations at once belongs to the instance', async () => {
    await using runtime = await start(
      program(`
var both = make(chan struct{})

func handler(event int) error {
	if event == 1 {
		both <- struct{}{}
		<-both
		return nil
	}
	<-both
	fmt.Println("whose")
	log.Print("flushed")
	both <- struct{}{}
	return nil
}`),
      2,
    )
    const answers = await Promise.all([runtime.invokeJson(1).answer(), runtime.invokeJson(2).answer()])
    expect(answers.flatMap((answer) => answer.logs)).toEqual([])
    expect(runtime.instanceLogs.map((line) => line.text)).toContain('whose\n')
  })

  test('what log.Fatal says before Start reaches the worker', async () => {
    const codeDir = await folders.of(
      program('func init() { log.SetFlags(0); log.Fatal("no database") }\n\nfunc handler() error { return nil }'),
    )
    await using runtime = await RuntimeProcess.start(go.command(codeDir), { runtimeDir, cwd: codeDir })
    await runtime.hello()
    runtime.sendLoad({ code_dir: codeDir, handler: 'main' })
    await expect(runtime.ready()).rejects.toThrow('the connection ended')
    expect(runtime.instanceLogs).toEqual([{ source: 'stderr', text: 'no database\n' }])
  })

  test('handlers of another shape are refused at load, with what is wrong', async () => {
    for (const [declaration, message] of [
      ['func handler(a, b int) error { return nil }', 'at most a context.Context and one event'],
      ['func handler() (int, int, error) { return 0, 0, nil }', 'at most one result and an error'],
      ['func handler(event ...int) error { return nil }', 'variadic'],
      ['func handler(event fmt.Stringer) error { return nil }', 'interface fmt.Stringer'],
      ['func handler(event chan int) error { return nil }', 'cannot be decoded into chan int'],
      ['func handler() (func(), error) { return nil, nil }', 'not func()'],
      ['var handler func() error', 'nil'],
    ] as const) {
      const codeDir = await folders.of(program(declaration))
      await using runtime = await RuntimeProcess.start(go.command(codeDir), { runtimeDir, cwd: codeDir })
      await runtime.hello()
      runtime.sendLoad({ code_dir: codeDir, handler: 'main' })
      expect(await runtime.loadFailed()).toMatchObject({ type: 'HandlerError', message: expect.stringContaining(message) })
    }
  })

  test('a child process of the function knows nothing of the connection', async () => {
    await using runtime = await start(
      program(`
func handler() (int, error) {
	for _, pair := range os.Environ() {
		if strings.HasPrefix(pair, "THAW_RUNTIME_") {
			return 0, errors.New(pair)
		}
	}
	return len(os.Environ()), nil
}`),
    )
    expect((await runtime.invoke().answer()).failed).toBeUndefined()
  })
})

test('a function that thaw did not start says so', async () => {
  await using folders = new CodeFolders(go)
  const codeDir = await folders.of(program('func handler() error { return nil }'))
  await expect(run(join(codeDir, '.thaw/bin/function'))).rejects.toMatchObject({ code: 2, stderr: expect.stringContaining('thaw deploy') })
})
