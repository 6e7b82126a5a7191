import { ThawError } from '@thaw/protocol'
import type { InvocationRow } from '../store/store.ts'
import type { Metrics } from '../telemetry/metrics.ts'
import { type AnswerSink, Invocation, type InvokeRequest } from './invocation.ts'
import { type Borrower, Loan } from './loan.ts'
import type { LogBook } from './logbook.ts'
import type { InvokerOptions, Run, RunParts, RunRequest } from './run.ts'
import type { Scheduler } from './scheduler.ts'
import type { Version } from './version.ts'

interface Records {
  invocation(row: InvocationRow): void
}

/** Runs invocations: finds an instance, enforces the time limit, reports, records. */
export class Invoker {
  readonly #parts: RunParts
  readonly #active = new Map<string, Run>()

  constructor(options: InvokerOptions, parts: { scheduler: Scheduler; records: Records; logBook: LogBook; metrics: Metrics }) {
    const { scheduler, records, logBook, metrics } = parts
    this.#parts = {
      scheduler,
      logBook,
      options,
      finished: (ended) => {
        this.#active.delete(ended.id)
        const row = ended.row()
        records.invocation(row)
        metrics.invocation(row)
      },
    }
  }

  invoke(version: Version, request: InvokeRequest, sink: AnswerSink): Invocation {
    const invocation = new Invocation(version, request, sink, this.#parts)
    this.#active.set(invocation.id, invocation)
    invocation.start()
    return invocation
  }

  /** An invocation of a function that the caller speaks to itself (the http contract). */
  borrow(version: Version, request: RunRequest, borrower: Borrower): Loan {
    const loan = new Loan(version, request, borrower, this.#parts)
    this.#active.set(loan.id, loan)
    loan.start()
    return loan
  }

  /** An invocation that has not ended, or undefined. */
  active(id: string): Run | undefined {
    return this.#active.get(id)
  }

  /** All that run now, oldest first. */
  get running(): Run[] {
    return [...this.#active.values()]
  }

  cancelAllOf(functionId: string, reason: ThawError): void {
    for (const run of [...this.#active.values()]) if (run.version.functionId === functionId) run.cancel(reason)
  }

  /** Resolves when nothing runs any more; after `timeoutMs` what still runs is cancelled, at once what would never end. */
  async drain(timeoutMs: number): Promise<void> {
    const deadline = AbortSignal.timeout(timeoutMs)
    for (const run of [...this.#active.values()]) if (run.endless) run.cancel(new ThawError('shutting_down'))
    while (this.#active.size > 0 && !deadline.aborted) {
      const settled = Promise.all([...this.#active.values()].map((run) => run.done))
      await Promise.race([settled, new Promise((resolve) => deadline.addEventListener('abort', resolve, { once: true }))])
    }
    for (const run of [...this.#active.values()]) run.cancel(new ThawError('shutting_down'))
  }
}
