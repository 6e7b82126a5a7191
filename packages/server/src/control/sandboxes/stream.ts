import { maxStreamIds, type StreamCommandParsed, ThawError, toThawError } from '@thaw/protocol'
import type { Caller } from '../caller.ts'
import type { Lease } from './live-sandbox.ts'
import type { Sandboxes } from './sandboxes.ts'
import type { Snapshots } from './snapshots.ts'
import { StreamLine, type StreamOutput } from './stream-line.ts'
import { StreamProcess } from './stream-process.ts'
import { StreamWatch } from './stream-watch.ts'

export interface StreamParts {
  sandboxes: Sandboxes
  snapshots: Snapshots
  caller: Caller
  /** Belongs to the stream from here on. */
  lease: Lease
  encoding: 'utf8' | 'base64'
  output: StreamOutput
  /** Nothing will come any more: the sandbox has ended. */
  onEnd: (state: 'stopped' | 'failed') => void
}

/** What one client does in one sandbox over one connection: processes, terminals, watches, and what happens there. */
export class SandboxStream {
  readonly #parts: StreamParts
  readonly #line: StreamLine
  readonly #processes = new Map<string, StreamProcess>()
  readonly #watches = new Map<string, StreamWatch>()
  readonly #running = new Set<Promise<void>>()
  readonly #unlisten: () => void
  #closed = false

  constructor(parts: StreamParts) {
    this.#parts = parts
    const { sandboxes, caller, lease, encoding, output } = parts
    this.#line = new StreamLine({ sandboxes, caller, lease, encoding, output, onEnded: (id) => this.#processes.delete(id) })
    this.#unlisten = lease.sandbox.events.listen((event) => {
      output.send(event)
      if (event.event === 'stopped' || event.event === 'failed') void this.#end(event.event)
    })
  }

  receive(command: StreamCommandParsed): void {
    try {
      this.#do(command)
    } catch (error) {
      this.#refuse(command.id, error)
    }
  }

  #do(command: StreamCommandParsed): void {
    switch (command.type) {
      case 'exec':
      case 'attach': {
        this.#claim(command.id)
        const process = new StreamProcess(command, this.#line)
        this.#processes.set(command.id, process)
        this.#run(process, this.#processes)
        return
      }
      case 'watch': {
        this.#claim(command.id)
        const watch = new StreamWatch(command, this.#line)
        this.#watches.set(command.id, watch)
        this.#run(watch, this.#watches)
        return
      }
      case 'unwatch':
        this.#watch(command.id).close()
        this.#watches.delete(command.id)
        return
      case 'stdin':
        this.#process(command.id).write(bytesOf(command.data ?? '', this.#parts.encoding), command.eof)
        return
      case 'resize':
        this.#process(command.id).resize(command.cols, command.rows)
        return
      case 'hold':
        this.#process(command.id).hold(command.held)
        return
      case 'signal':
        void this.#process(command.id).signal(command.signal)
        return
      case 'checkpoint':
        void this.#checkpoint(command)
        return
      case 'stop':
        void this.#stop(command.id)
        return
    }
  }

  /** The connection is gone. Resolves when what was to end with it has been ended. */
  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    this.#unlisten()
    for (const watch of this.#watches.values()) watch.close()
    await Promise.all([...this.#processes.values()].map((process) => process.close()))
    // What only just starts, to end with the connection, still has to be ended.
    await Promise.all(this.#running)
    this.#parts.lease.release()
  }

  #run<Task extends { id: string; run(): Promise<void> }>(task: Task, tasks: Map<string, Task>): void {
    const running = task.run().finally(() => {
      if (tasks.get(task.id) === task) tasks.delete(task.id)
      this.#running.delete(running)
    })
    this.#running.add(running)
  }

  #claim(id: string): void {
    if (this.#processes.has(id) || this.#watches.has(id)) {
      throw new ThawError('invalid_request', `The id ${JSON.stringify(id)} is in use on this connection.`, { fix: 'Choose another id.' })
    }
    if (this.#processes.size + this.#watches.size >= maxStreamIds) {
      throw new ThawError('too_many_requests', `A connection carries at most ${maxStreamIds} processes and watches at a time.`, {
        fix: 'Open another connection.',
      })
    }
  }

  #process(id: string): StreamProcess {
    const process = this.#processes.get(id)
    if (process === undefined) throw new ThawError('process_not_found', `There is no process ${JSON.stringify(id)} on this connection.`)
    return process
  }

  #watch(id: string): StreamWatch {
    const watch = this.#watches.get(id)
    if (watch === undefined) throw new ThawError('invalid_request', `There is no watch ${JSON.stringify(id)} on this connection.`)
    return watch
  }

  async #checkpoint({ id, name }: Extract<StreamCommandParsed, { type: 'checkpoint' }>): Promise<void> {
    const { snapshots, caller, lease, output } = this.#parts
    try {
      const snapshot = await snapshots.take(caller, lease.sandbox.row.id, { fallback: false, ...(name === undefined ? {} : { name }) })
      output.send({ type: 'checkpoint', ...(id === undefined ? {} : { id }), snapshot })
    } catch (error) {
      this.#refuse(id, error)
    }
  }

  async #stop(id: string | undefined): Promise<void> {
    const { sandboxes, caller, lease } = this.#parts
    try {
      await sandboxes.stop(caller, lease.sandbox.row.id)
    } catch (error) {
      this.#refuse(id, error)
    }
  }

  async #end(state: 'stopped' | 'failed'): Promise<void> {
    // Each process and watch says first what became of it.
    for (const process of this.#processes.values()) process.hold(false)
    await Promise.all(this.#running)
    this.#parts.onEnd(state)
  }

  #refuse(id: string | undefined, error: unknown): void {
    const isKnown = id !== undefined && (this.#processes.has(id) || this.#watches.has(id))
    this.#parts.output.send({
      type: 'error',
      ...(id === undefined ? {} : { id }),
      ended: !isKnown,
      error: toThawError(error).toBody().error,
    })
  }
}

/** Throws where a client sends something else than what it said that it would. */
function bytesOf(text: string, encoding: 'utf8' | 'base64'): Buffer {
  if (encoding === 'base64' && !/^[A-Za-z0-9+/]*={0,2}$/.test(text)) {
    throw new ThawError('invalid_request', 'data is not base64.', { fix: 'Leave encoding=base64 out of the address to send text.' })
  }
  return Buffer.from(text, encoding)
}
