import { existsSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { Images } from '../packages/server/src/images/images.ts'
import { runtimeImages } from '../packages/server/src/images/runtime-images.ts'

/** The folder that a server of root uses by default. */
const imagesDir = '/var/cache/thaw/images'

/**
 * Builds the runtime images where this machine can use them, so that no single test waits for that. Vitest runs it
 * before all tests. Nothing to do takes milliseconds.
 */
export async function setup(): Promise<void> {
  const missing = ['mmdebstrap', 'runc'].filter((program) => !isInstalled(program))
  if (process.getuid?.() !== 0) missing.push('root')
  if (missing.length > 0) {
    console.log(`No runtime images for the tests: ${missing.join(', ')} missing.`)
    return
  }
  const images = await Images.open({ imagesDir })
  const onProgress = (line: string) => console.log(line)
  // One after the other: two builds at once on a small machine take as long, and say less clearly what goes on.
  for (const ref of ['host', ...runtimeImages]) await images.ensure(ref, { onProgress })
}

function isInstalled(program: string): boolean {
  return (process.env.PATH ?? '').split(delimiter).some((folder) => existsSync(join(folder, program)))
}
