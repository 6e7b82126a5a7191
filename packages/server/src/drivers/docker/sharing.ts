import { randomBytes } from 'node:crypto'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import type { Readable } from 'node:stream'
import { extract, pack } from 'tar-stream'
import { type Engine, statusOf } from './engine.ts'

/** An image without content: enough for a container that is never started. */
export const emptyImage = 'thaw/empty:1'

export async function importEmptyImage(engine: Engine): Promise<void> {
  const tar = pack()
  tar.entry({ name: 'thaw', type: 'directory', mode: 0o755 })
  tar.finalize()
  const [repo, tag] = emptyImage.split(':') as [string, string]
  await engine.call('POST', '/images/create', {
    query: { fromSrc: '-', repo, tag },
    stream: tar as unknown as Readable,
  })
}

/**
 * Whether the engine can mount what lies in `dataDir`: a container that is never started is given a file of ours, and is asked
 * what is in it.
 */
export async function sharesFiles(engine: Engine, dataDir: string): Promise<boolean> {
  const content = randomBytes(16).toString('hex')
  const dir = mkdtempSync(join(nearest(dataDir), 'thaw-probe-'))
  const name = `thaw-probe-${content}`
  try {
    writeFileSync(join(dir, 'probe'), content, { mode: 0o644 })
    await importEmptyImage(engine)
    await engine.call('POST', '/containers/create', {
      query: { name },
      body: {
        Image: emptyImage,
        Cmd: ['/none'],
        Labels: { 'thaw.probe': '1' },
        HostConfig: { NetworkMode: 'none', Mounts: [{ Type: 'bind', Source: dir, Target: '/thaw/probe', ReadOnly: true }] },
      },
    })
    return (await readFileInside(engine, name, '/thaw/probe/probe')) === content
  } catch (error) {
    // No such folder on the engine's host, or no such file in it.
    if (statusOf(error) === 400 || statusOf(error) === 404) return false
    throw error
  } finally {
    await engine.call('DELETE', `/containers/${name}`, { query: { force: true, v: true } }).catch(() => undefined)
    rmSync(dir, { recursive: true, force: true })
  }
}

/** Who only looks at this machine has no data directory yet. */
function nearest(dir: string): string {
  return existsSync(dir) ? dir : nearest(dirname(dir))
}

async function readFileInside(engine: Engine, container: string, path: string): Promise<string> {
  const tar = await engine.stream('GET', `/containers/${container}/archive`, { query: { path } })
  const entries = extract()
  tar.once('error', (error) => entries.destroy(error))
  tar.pipe(entries as unknown as NodeJS.WritableStream)
  let text = ''
  for await (const entry of entries) for await (const bytes of entry) text += String(bytes)
  return text
}
