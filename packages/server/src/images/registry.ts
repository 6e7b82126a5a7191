import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { ThawError } from '@thaw/protocol'
import { z } from 'zod'
import { CommandError, runCommand } from './command.ts'
import { isLoopback, type Reference } from './reference.ts'

export interface RegistryOptions {
  /** Registries (host:port) that are asked over plain HTTP; those on loopback are anyway. */
  insecureRegistries: readonly string[]
  /** Credentials as `docker login` and `skopeo login` write them (containers-auth.json(5)). */
  authFile: string | null
}

/** Manifests of the OCI image specification and of Docker's schema 2 have the same fields. */
const descriptorSchema = z.object({
  mediaType: z.string().optional(),
  digest: z.string().regex(/^sha256:[0-9a-f]{64}$/),
  size: z.int().min(0),
})
const imageManifestSchema = z.object({ config: descriptorSchema, layers: z.array(descriptorSchema).max(512) })
const indexSchema = z.object({
  manifests: z.array(
    descriptorSchema.extend({
      platform: z.object({ os: z.string(), architecture: z.string() }).optional(),
    }),
  ),
})

export interface ResolvedImage {
  /** Name and digest of the manifest for this machine's platform. */
  digest: string
  layers: { digest: string; size: number }[]
  config: { digest: string; size: number }
}

const inspectTimeoutMs = 60_000
const copyTimeoutMs = 30 * 60_000
const policyFile = '/etc/containers/policy.json'

/**
 * Asks registries, through skopeo. Errors: `image_unresolvable` (no such image, not allowed, no build for this
 * platform), `image_digest_mismatch`, `image_unavailable` (not reachable, skopeo missing), `disk_full`.
 */
export class Registry {
  readonly #options: RegistryOptions

  constructor(options: RegistryOptions) {
    this.#options = options
  }

  /** Which image a reference means now, for this machine's platform. A digest in it wins over a tag. */
  async resolve(reference: Reference, signal?: AbortSignal): Promise<ResolvedImage> {
    const { digest: wanted, tag } = reference
    const address = wanted === null ? `${reference.name}:${tag ?? 'latest'}` : `${reference.name}@${wanted}`
    const manifest = await this.#manifest(reference, address, wanted, signal)
    const index = indexSchema.safeParse(manifest.json)
    if (!index.success) return parseImage(manifest.json, manifest.digest, address)

    const architecture = process.arch === 'x64' ? 'amd64' : process.arch
    const found = index.data.manifests.find(({ platform }) => platform?.os === 'linux' && platform.architecture === architecture)
    if (found === undefined) {
      throw new ThawError('image_unresolvable', `${address} has no image for linux/${architecture}.`, {
        fix: 'Use an image that is built for this platform.',
      })
    }
    const chosen = await this.#manifest(reference, `${reference.name}@${found.digest}`, found.digest, signal)
    return parseImage(chosen.json, chosen.digest, address)
  }

  /** Downloads an image into a folder: manifest.json, and each blob under the digits of its digest, verified by skopeo. */
  async download(reference: Reference, digest: string, folder: string, maxFileBytes: number, signal?: AbortSignal): Promise<void> {
    const address = `${reference.name}@${digest}`
    await this.#skopeo(
      reference,
      address,
      // A registry that sends more than it announced is stopped by the kernel (RLIMIT_FSIZE).
      ['prlimit', `--fsize=${maxFileBytes}`],
      [
        'copy',
        '--quiet',
        '--retry-times=2',
        `--src-tls-verify=${this.#verifiesTls(reference)}`,
        ...this.#auth(),
        `docker://${address}`,
        `dir:${folder}`,
      ],
      copyTimeoutMs,
      signal,
    )
  }

  /** Takes an archive of `docker save` apart into a folder, as `download` leaves one. */
  async readArchive(file: string, folder: string, maxFileBytes: number, signal?: AbortSignal): Promise<ResolvedImage> {
    const reference = { registry: null, name: 'archive', tag: null, digest: null }
    const args = ['copy', '--quiet', `docker-archive:${file}`, `dir:${folder}`]
    await this.#skopeo(reference, 'the image', ['prlimit', `--fsize=${maxFileBytes}`], args, copyTimeoutMs, signal)
    const text = await readFile(join(folder, 'manifest.json'), 'utf8')
    return parseImage(JSON.parse(text), `sha256:${createHash('sha256').update(text).digest('hex')}`, 'the image')
  }

  async #manifest(
    reference: Reference,
    address: string,
    wanted: string | null,
    signal?: AbortSignal,
  ): Promise<{ json: unknown; digest: string }> {
    let text: string
    try {
      const args = [
        'inspect',
        '--raw',
        '--retry-times=1',
        `--tls-verify=${this.#verifiesTls(reference)}`,
        ...this.#auth(),
        `docker://${address}`,
      ]
      text = await this.#skopeo(reference, address, [], args, inspectTimeoutMs, signal)
    } catch (error) {
      if (wanted !== null && error instanceof ThawError && error.code === 'image_unresolvable' && (await this.#hasTags(reference, signal)))
        throw mismatch(`${reference.name} exists, but has no image of the digest ${wanted}.`, error)
      throw error
    }
    const digest = `sha256:${createHash('sha256').update(text).digest('hex')}`
    if (wanted !== null && digest !== wanted) throw mismatch(`The registry answered ${wanted} with content that has the digest ${digest}.`)
    try {
      return { json: JSON.parse(text), digest }
    } catch (error) {
      throw new ThawError('image_unresolvable', `The manifest of ${address} is not JSON.`, { cause: error })
    }
  }

  /** Tells a wrong digest from a wrong name. */
  async #hasTags(reference: Reference, signal?: AbortSignal): Promise<boolean> {
    const args = ['list-tags', `--tls-verify=${this.#verifiesTls(reference)}`, ...this.#auth(), `docker://${reference.name}`]
    return this.#skopeo(reference, reference.name, [], args, inspectTimeoutMs, signal).then(
      () => true,
      () => false,
    )
  }

  async #skopeo(
    reference: Reference,
    address: string,
    wrapper: string[],
    args: string[],
    timeoutMs: number,
    signal: AbortSignal | undefined,
  ): Promise<string> {
    // Without a policy file skopeo refuses everything; where the administrator wrote one, it holds.
    const policy = existsSync(policyFile) ? [] : ['--insecure-policy']
    const [program = 'skopeo', ...rest] = [...wrapper, 'skopeo', ...policy, ...args]
    try {
      return await runCommand(program, rest, { timeoutMs, signal })
    } catch (error) {
      throw error instanceof CommandError ? explain(error, address, reference) : error
    }
  }

  #verifiesTls({ registry }: Reference): boolean {
    return registry === null || !(isLoopback(registry) || this.#options.insecureRegistries.includes(registry))
  }

  #auth(): string[] {
    return this.#options.authFile === null ? [] : ['--authfile', this.#options.authFile]
  }
}

function parseImage(json: unknown, digest: string, address: string): ResolvedImage {
  const parsed = imageManifestSchema.safeParse(json)
  if (parsed.success) return { digest, layers: parsed.data.layers, config: parsed.data.config }
  throw new ThawError('image_unresolvable', `The manifest of ${address} is of a kind that is not supported.`, {
    fix: 'Push the image again with a current tool; OCI manifests and Docker schema 2 are supported.',
  })
}

function mismatch(message: string, cause?: unknown): ThawError {
  return new ThawError('image_digest_mismatch', message, { cause })
}

/** What skopeo says, as one of our errors. Its messages are those of the registry's error codes and of the network. */
function explain(error: CommandError, address: string, { registry }: Reference): ThawError {
  const said = error.stderr
  const details = { stderr: said.slice(-2000) }
  const options = { details, cause: error }
  if (error.notFound || /skopeo: No such file|failed to execute skopeo/.test(said)) {
    return new ThawError('image_unavailable', 'OCI images are fetched by skopeo, which is not installed.', {
      ...options,
      fix: 'Run apt-get install skopeo (`npm run bootstrap` does), or use one of the images host, python, node and go.',
    })
  }
  if (/no space left on device/i.test(said)) return new ThawError('disk_full', undefined, options)
  if (/file too large/i.test(said)) return new ThawError('image_too_large', `${address} is larger than allowed.`, options)
  if (/digest (?:did|does) not match|does not match (?:provided manifest )?digest|digest mismatch|doesn't match the expected/i.test(said))
    return new ThawError('image_digest_mismatch', `The registry serves content for ${address} that does not have its digest.`, options)
  if (/unauthorized|authentication required|access to the resource is denied|403 \(?forbidden/i.test(said)) {
    return new ThawError('image_unresolvable', `The registry does not let us read ${address}, or it does not exist.`, {
      ...options,
      fix: 'Check the name; for a private image log in with `skopeo login` as the user of the server, or name a file with credentials in registries.auth_file.',
    })
  }
  // Not the 404 of a port.
  if (/manifest unknown|name unknown|name invalid|not found|(?<![:\d])404(?!\d)/i.test(said))
    return new ThawError('image_unresolvable', `There is no image ${address}.`, { ...options, fix: 'Check the name and the tag.' })
  const plain = /server gave HTTP response to HTTPS client/i.test(said)
  return new ThawError('image_unavailable', `${address} could not be fetched: ${lastLine(said) || error.message}`, {
    ...options,
    ...(plain ? { fix: `The registry speaks plain HTTP. If that is meant, add "${registry}" to registries.insecure.` } : {}),
  })
}

/** The message of skopeo's log line (logrus text format). */
function lastLine(text: string): string {
  const line = text.slice(text.lastIndexOf('\n') + 1)
  return (/msg="((?:[^"\\]|\\.)*)"/.exec(line)?.[1] ?? line).replace(/\\"/g, '"').slice(0, 500)
}
