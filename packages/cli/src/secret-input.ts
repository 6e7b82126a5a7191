import { readFile } from 'node:fs/promises'
import { text } from 'node:stream/consumers'
import { Interrupted, UsageError } from './errors.ts'

/** The value of a secret: as given, from `@file`, from standard input (`-`), or asked for on a terminal. */
export async function readSecret(name: string, given: string | undefined, signal: AbortSignal): Promise<string> {
  if (given === undefined && process.stdin.isTTY) return askUnseen(`value of ${name}: `, signal)
  // Who pipes a value rarely means the line break that echo and editors put behind it.
  if (given === undefined || given === '-') return (await text(process.stdin)).replace(/\r?\n$/, '')
  if (!given.startsWith('@')) return given
  const bytes = await readFile(given.slice(1)).catch((error: Error) => {
    throw new UsageError(`The value cannot be read: ${error.message}`, 'Name a file that exists behind @.')
  })
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch {
    throw new UsageError(`${given.slice(1)} is not text in UTF-8.`, 'Encode it, as base64 for example, and decode it in the function.')
  }
}

const keys = { interrupt: '\x03', endOfInput: '\x04', backspace: ['\b', '\x7f'], enter: ['\r', '\n'] }

/** Reads one line from the terminal, which does not show what is typed. */
function askUnseen(question: string, signal: AbortSignal): Promise<string> {
  const { stdin, stderr } = process
  // In this order: the terminal shows what is typed until it is told not to.
  stdin.setRawMode(true)
  stdin.setEncoding('utf8')
  stderr.write(question)
  return new Promise((resolve, reject) => {
    const typed: string[] = []
    const settle = (end: () => void) => {
      stdin.off('data', take)
      signal.removeEventListener('abort', abort)
      stdin.setRawMode(false)
      stdin.pause()
      stderr.write('\n')
      end()
    }
    const abort = () => settle(() => reject(signal.reason))
    const take = (input: string) => {
      for (const key of input) {
        // In raw mode Ctrl-C is a character like any other.
        if (key === keys.interrupt) return settle(() => reject(new Interrupted()))
        if (key === keys.endOfInput || keys.enter.includes(key)) return settle(() => resolve(typed.join('')))
        if (keys.backspace.includes(key)) typed.pop()
        else typed.push(key)
      }
    }
    stdin.on('data', take)
    signal.addEventListener('abort', abort, { once: true })
  })
}
