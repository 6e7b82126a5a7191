export interface OciOptions {
  /** Everything of this driver lies below it. */
  dataDir: string
  /** The OCI runtime. `auto`, the default: runc, or crun where only that is installed. */
  engine?: OciEngine
  /** See `VolumeOptions`; those of the default configuration otherwise. */
  storageMib?: number | null
  diskMib?: number
}

/** `runsc` is gVisor. */
export type OciEngine = 'auto' | 'runc' | 'crun' | 'runsc'
