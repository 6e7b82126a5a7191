import { z } from 'zod'

/** What an image says about how to run it; paths are those inside. */
const configSchema = z.object({
  env: z.record(z.string(), z.string()),
  entrypoint: z.array(z.string()).nullable(),
  cmd: z.array(z.string()).nullable(),
  workdir: z.string().nullable(),
  user: z.string().nullable(),
})
export type ImageConfig = z.infer<typeof configSchema>

/** Paths inside of the interpreters and toolchains that runtimes need; null where the image has none. */
const interpretersSchema = z.object({ python: z.string().nullable(), node: z.string().nullable(), go: z.string().nullable() })
export type Interpreters = z.infer<typeof interpretersSchema>

/** manifest.json beside the root file system: all that is known of an image on disk. */
export const manifestSchema = z.object({
  /** What it was first asked for as. */
  ref: z.string(),
  kind: z.enum(['host', 'runtime', 'oci']),
  digest: z.string().regex(/^sha256:[0-9a-f]{64}$/),
  size_bytes: z.int(),
  created_at: z.iso.datetime(),
  config: configSchema,
  interpreters: interpretersSchema,
  /** Name and version of each Debian package in it, for images that are built here. */
  packages: z.array(z.string()),
  /** Host folders shown read-only on top of the root file system. */
  binds: z.array(z.object({ source: z.string(), target: z.string() })),
})
export type ImageManifest = z.infer<typeof manifestSchema>

/** A reference that was resolved: which image it meant. */
export const pointerSchema = z.object({ ref: z.string(), digest: z.string() })

export const defaultPath = ['/usr/local/sbin', '/usr/local/bin', '/usr/sbin', '/usr/bin', '/sbin', '/bin']
