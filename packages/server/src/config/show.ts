export type Origin = 'default' | 'file' | 'environment' | 'flag'

/** One line of `thaw config show`. */
export interface ConfigEntry {
  key: string
  /** Redacted where it may hold a secret. */
  value: unknown
  origin: Origin
}

const secretName = /secret|token|passw|passphrase|auth|credential|private|(^|_)key(_|$)|api_?key|signature/i
const hidden = '***'

/** Hides user names and passwords of URLs, in a text that may hold several, separated by spaces or commas. */
export function redactUrls(text: string): string {
  return text.replace(/([a-z][a-z0-9+.-]*:\/\/)[^/\s,]*@/gi, `$1${hidden}@`).replace(/(^|[\s,])[^\s/@,:]+:[^\s/@,]+@/g, `$1${hidden}@`)
}

/** The value of a key as it may be shown: names that sound secret are hidden whole, URLs lose their credentials. */
export function redactValue(key: string, value: unknown): unknown {
  const variable = key.startsWith('builds.env.') ? key.slice('builds.env.'.length) : null
  if (variable !== null && secretName.test(variable)) return hidden
  if (typeof value === 'string') return redactUrls(value)
  if (Array.isArray(value)) return value.map((part) => redactValue(key, part))
  return value
}

/** The entries as aligned lines: key, value as JSON, origin. */
export function formatEntries(entries: readonly ConfigEntry[]): string {
  const rows = entries.map((entry) => ({ key: entry.key, value: JSON.stringify(entry.value), origin: entry.origin }))
  const keyWidth = Math.max(0, ...rows.map((row) => row.key.length))
  const valueWidth = Math.min(60, Math.max(0, ...rows.map((row) => row.value.length)))
  return rows.map((row) => `${row.key.padEnd(keyWidth)}  ${row.value.padEnd(valueWidth)}  ${row.origin}\n`).join('')
}
