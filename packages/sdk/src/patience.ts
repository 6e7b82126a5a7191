import type { FetchFunction } from './http.ts'

type Dispatcher = object
type DispatcherClass = new (options: { headersTimeout: number; bodyTimeout: number }) => Dispatcher

let patient: Promise<Dispatcher | undefined> | undefined

/**
 * The global fetch without its time limits. Node.js gives up when an answer begins, or goes on, only after 300 s, while
 * an invocation may take a day and a followed log may stay silent for as long. Other fetches have no such limit.
 */
export const patientFetch: FetchFunction = async (url, init) => {
  patient ??= patientDispatcher()
  const dispatcher = await patient
  return fetch(url, dispatcher === undefined ? init : ({ ...init, dispatcher } as RequestInit))
}

/** undici, which is fetch in Node.js, keeps its dispatcher under a documented symbol, from the first fetch on. */
async function patientDispatcher(): Promise<Dispatcher | undefined> {
  if ((globalThis as { process?: { versions?: { undici?: string } } }).process?.versions?.undici === undefined) return undefined
  await fetch('data:,')
  const known = Reflect.get(globalThis, Symbol.for('undici.globalDispatcher.1')) as object | undefined
  if (known?.constructor.name !== 'Agent') return undefined
  return new (known.constructor as DispatcherClass)({ headersTimeout: 0, bodyTimeout: 0 })
}
