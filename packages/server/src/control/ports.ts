import type { Readable } from 'node:stream'
import type { Runtime } from '@thaw/protocol'
import type { ImageSource } from '../drivers/driver.ts'

/** What control needs of the image store (images/). */
export interface Images {
  /** Makes the image available on disk; quick when it is. `image_unresolvable`, `image_unavailable`, `image_digest_mismatch`. */
  ensure(ref: string, options: { signal?: AbortSignal; onProgress?: (line: string) => void }): Promise<ReadyImage>
  /** The image of a digest, if it is on disk. Asks no registry. */
  find(digest: string): Promise<ReadyImage | null>
}

export interface ReadyImage {
  kind: 'host' | 'runtime' | 'oci'
  digest: string
  source: ImageSource
  /** What the image itself says about how it wants to be started (OCI images). */
  config?: { env?: Record<string, string>; workdir?: string | null } | undefined
}

/** What control needs to build images from a Dockerfile (drivers/docker). */
export interface ImageBuilder {
  /** Builds from a tar stream, and writes the image to a file (docker save). `build_failed` with its log, `driver_unavailable`. */
  buildImage(request: {
    ref: string
    context: Readable
    dockerfile: string
    target: string
    onProgress: (line: string) => void
    signal: AbortSignal
  }): Promise<void>
}

/** What control needs of the store of code (bundles/). */
export interface Bundles {
  /** Keeps one source file under the name that its runtime expects. */
  addInline(source: Uint8Array, runtime: Runtime): Promise<{ digest: string }>
  /** Validates and keeps an archive. `archive_invalid`, `archive_unsafe`, `archive_too_large`. */
  addArchive(archive: Buffer): Promise<{ digest: string }>
  /** Unpacks into a folder that does not exist yet; nothing is left when it rejects. */
  unpack(digest: string, target: string): Promise<void>
  /** Removes every bundle that is not named and older than that. */
  removeBlobsExcept(digests: Iterable<string>, options: { olderThanMs: number }): Promise<unknown>
}

/** What control needs of the files of snapshots (snapshots/). */
export interface SnapshotFiles {
  draft(): Promise<SnapshotDraft>
  /** Throws `snapshot_corrupt` unless everything is as it was when it was committed. */
  check(id: string, digest: string): Promise<unknown>
  dataDir(id: string): string
  /** Compresses it; `check` brings it back. Returns its size. */
  archive(id: string): Promise<number>
  remove(id: string): Promise<void>
  /** As one file. */
  export(id: string, note: unknown): Promise<Readable>
  /** Throws `archive_invalid` and `snapshot_corrupt`. */
  import(archive: Readable): Promise<{ draft: SnapshotDraft; manifest: ImportedManifest; note: unknown }>
}

/** What a snapshot that was exported says about itself. Whoever made the file made it up. */
export interface ImportedManifest {
  kind: 'filesystem' | 'memory'
  driver: string
  image_digest: string
  fingerprint: Record<string, string>
  driver_state: Record<string, unknown>
}

/** A snapshot that is being written; it is removed unless it was committed. */
export interface SnapshotDraft extends AsyncDisposable {
  /** Where the driver writes. */
  readonly data: string
  commit(
    head: {
      id: string
      kind: 'filesystem' | 'memory'
      driver: string
      image_digest: string
      fingerprint: Record<string, string>
      driver_state: Record<string, unknown>
      spec: unknown
    },
    now: number,
  ): Promise<{ manifest_digest: string; size_bytes: number }>
}
