import { once } from 'node:events'
import { styleText } from 'node:util'
import { Progress } from './progress.ts'

/**
 * What commands print. Results go to standard output; progress, remarks and errors to standard error. With --json,
 * standard output carries JSON only, and standard error only a possible error, as JSON too.
 */
export class Output {
  readonly json: boolean
  readonly progress: Progress
  /** What the command is about, as far as it is known, so that errors can name it. */
  readonly about: { command?: string; function?: string; url?: string } = {}

  constructor(options: { json: boolean }) {
    this.json = options.json
    this.progress = new Progress({ silent: options.json })
  }

  /** The result: as JSON, or as the lines that `text` gives. */
  result(value: unknown, text: () => string): void {
    this.line(this.json ? JSON.stringify(value, null, process.stdout.isTTY ? 2 : 0) : text())
  }

  line(text: string): void {
    if (text !== '') process.stdout.write(text.endsWith('\n') ? text : `${text}\n`)
  }

  /** Resolves when the reader can take more, so that a long stream is not gathered in memory. */
  async bytes(bytes: Uint8Array): Promise<void> {
    if (!process.stdout.write(bytes)) await once(process.stdout, 'drain')
  }

  /** What a command in a sandbox wrote to its standard error. */
  async errorBytes(bytes: Uint8Array): Promise<void> {
    if (!process.stderr.write(bytes)) await once(process.stderr, 'drain')
  }

  /** A remark beside the result. */
  note(text: string): void {
    this.progress.line(text)
  }

  error(text: string): void {
    this.progress.stop()
    process.stderr.write(`${text}\n`)
  }

  red(text: string): string {
    return styleText('red', text, { stream: process.stderr })
  }

  dim(text: string): string {
    return styleText('dim', text, { stream: process.stderr })
  }
}

/** Text of code that nobody trusts, made harmless: it must not move the cursor or change the title of a terminal. */
export function printable(text: string): string {
  return Array.from(text.replace(/\r?\n$/, ''), (character) => (isControl(character) ? escaped(character) : character)).join('')
}

function isControl(character: string): boolean {
  const code = character.codePointAt(0) ?? 0
  return (code < 0x20 && character !== '\t' && character !== '\n') || (code >= 0x7f && code < 0xa0)
}

function escaped(character: string): string {
  return `\\x${(character.codePointAt(0) ?? 0).toString(16).padStart(2, '0')}`
}

/** Columns, each as wide as its widest cell. */
export function table(headers: string[], rows: string[][]): string {
  const all = [headers, ...rows]
  const widths = headers.map((_, column) => Math.max(...all.map((row) => row[column]?.length ?? 0)))
  return all
    .map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join('  ')
        .trimEnd(),
    )
    .join('\n')
}

/** Names and values under each other; null and undefined are left out. */
export function fields(pairs: [name: string, value: string | number | null | undefined][]): string {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== '')
  const width = Math.max(...shown.map(([name]) => name.length))
  return shown.map(([name, value]) => `${name.padEnd(width)}  ${value}`).join('\n')
}

export function size(bytes: number | null): string {
  if (bytes === null) return '-'
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  const unit = bytes === 0 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(bytes) / 10))
  const value = bytes / 1024 ** unit
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`
}

export function milliseconds(ms: number): string {
  return ms < 10 ? `${ms.toFixed(2)} ms` : ms < 1000 ? `${ms.toFixed(1)} ms` : `${(ms / 1000).toFixed(2)} s`
}
