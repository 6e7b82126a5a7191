import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { programsDir } from './workbench.ts'

export type Language = 'python' | 'node'

/** What every JSON row sends, and what has to come back. */
export const event = { name: 'world', numbers: Array.from({ length: 20 }, (_, index) => index) }
export const eventJson = JSON.stringify(event)
export const expected = { hello: 'world', count: 20, sum: 190 }

/** Source of a function. `salt` makes it another one, so that nothing of an earlier one is used again. */
export function workSource(language: Language, salt = ''): string {
  const comment = language === 'python' ? '#' : '//'
  const source = readFileSync(join(programsDir, language === 'python' ? 'work.py' : 'work.mjs'), 'utf8')
  const handler =
    language === 'python'
      ? '\n\ndef handler(event, context):\n    return work(event)\n'
      : '\nexport const handler = (event) => work(event)\n'
  return `${comment} ${salt}\n${source}${handler}`
}

/** Throws unless the answer is the expected one: a fast wrong answer is no figure. */
export function checkAnswer(who: string, body: Buffer | string): void {
  const given: unknown = JSON.parse(body.toString())
  if (JSON.stringify(given) !== JSON.stringify(expected)) throw new Error(`${who} answered ${body.toString().slice(0, 200)}`)
}
