import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

const checkoutManifest = fileURLToPath(new URL('../../../package.json', import.meta.url))

/** How this command is typed here: in a checkout, and where npm runs it, npm alone knows where it lies. */
export const ownName = nameFor(process.env, existsSync(checkoutManifest))

export function nameFor(env: NodeJS.ProcessEnv, inCheckout: boolean): 'thaw' | 'npx thaw' {
  return inCheckout || env.npm_command === 'exec' || env.npm_lifecycle_event === 'npx' ? 'npx thaw' : 'thaw'
}

/**
 * Commands in a text, as they are typed here: behind a backtick or a bracket, and in the examples of help at the beginning
 * of an indented line, behind a pipe or an assignment.
 */
export function asTyped(text: string, name: string = ownName): string {
  return text.replace(/(^ {2}|[`(]|\| |\b[A-Z_]+=\S+ )thaw (?=[a-zA-Z-])/gm, `$1${name} `)
}
