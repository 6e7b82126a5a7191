import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { layer, registryMissing, registryUser, startRegistry } from '../support/registry.ts'
import { startServer } from '../support/server.ts'
import { tempDir } from '../support/temp.ts'

const missing = registryMissing()
if (missing !== null && process.env.CI) throw new Error(`CI must have every tool: ${missing}`)

describe.skipIf(missing !== null)(`a private registry${missing === null ? '' : ` (skipped: ${missing})`}`, () => {
  test('is read with the credentials of registries.auth_file; without them, or with wrong ones, the error says what to do', async () => {
    using dir = tempDir()
    await using registry = await startRegistry('private')
    const digest = await registry.push('app:1', { layers: [await layer({ name: 'etc/private', content: 'yes' })] })
    const ref = `${registry.address}/app:1`
    const authFile = (name: string, password: string) => {
      const path = join(dir.path, name)
      const auth = Buffer.from(`${registryUser.name}:${password}`).toString('base64')
      writeFileSync(path, JSON.stringify({ auths: { [registry.address]: { auth } } }), { mode: 0o600 })
      return path
    }
    const pull = async (auth_file: string | null) => {
      await using server = await startServer({ driver: 'process', images_dir: join(dir.path, 'images'), registries: { auth_file } })
      return await server.thaw.images.create(ref)
    }
    const refused = { code: 'image_unresolvable', fix: expect.stringContaining('registries.auth_file') }
    await expect(pull(null)).rejects.toMatchObject(refused)
    await expect(pull(authFile('wrong.json', 'guessed'))).rejects.toMatchObject(refused)
    expect(await pull(authFile('right.json', registryUser.password))).toMatchObject({ ref, digest, state: 'ready' })
  })
})
