import { randomBytes } from 'node:crypto'
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmdirSync,
  rmSync,
  statfsSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { ThawError } from '@thaw/protocol'
import { runCommand } from '../command.ts'
import { idShift } from '../driver.ts'

export interface VolumeOptions {
  /** Of the server. */
  dataDir: string
  /** What all sandboxes together may write, MiB; null: half of what is free on the disk of the data directory. */
  storageMib: number | null
  /** What a sandbox may write that asks for nothing else, MiB. */
  diskMib: number
}

const mib = 1024 * 1024
const minStorageMib = 1024
/** With less than this left for all, a new sandbox would hardly start. */
const minFreeMib = 64
/** Made ahead: a disk takes as long as the rest of a start. */
const spareCount = 2
/** The start that took the last one comes first. */
const refillDelayMs = 50

/** In the folder of a sandbox: leads to its disk. */
const linkName = 'layer'

/** The folder that holds the writable layer of a sandbox: its disk, or its own folder where the host can make none. */
export function layerFolder(sandboxDir: string): string {
  return diskOf(sandboxDir) ?? sandboxDir
}

/** Whether a layer is empty, and its root folder itself was not changed either. */
export function isPristine(folder: string): boolean {
  const { uid, gid, mode } = statSync(folder)
  return uid === idShift && gid === idShift && (mode & 0o7777) === 0o755 && readdirSync(folder).length === 0
}

/**
 * Disks of bounded size for the writable layers of sandboxes. Each is a file system in a file of its own: what fills it, with
 * bytes or with files, meets ENOSPC, and nobody else notices. Quotas on a shared file system would do the same for less, but
 * the kernels of many hosts were built without them. The files lie on one more such file system, the volume, so that all
 * sandboxes together cannot fill the disk of the host. Files of both kinds have holes: they take what was written.
 *
 * In `<dataDir>/oci`: `volume.img`, mounted at `volume/`; in that, of each disk, `<name>.img`, mounted at `<name>/`. Everything is
 * made at first need and goes when no sandbox is left. There are no journals: nothing on a disk outlives the kernel.
 */
export class Volume {
  readonly #options: VolumeOptions
  readonly #image: string
  readonly #dir: string
  readonly #sandboxesDir: string
  readonly #spares: string[] = []
  #problem: Promise<string | null> | undefined
  /** Its size in MiB. */
  #opened: Promise<number> | undefined
  #refilling: Promise<void> | undefined
  #closed = false

  constructor(options: VolumeOptions) {
    this.#options = options
    this.#image = join(options.dataDir, 'oci', 'volume.img')
    this.#dir = join(options.dataDir, 'oci', 'volume')
    this.#sandboxesDir = join(options.dataDir, 'oci', 'sandboxes')
  }

  /** Why sandboxes of this host cannot have disks, or null: found out by making one. */
  problem(): Promise<string | null> {
    this.#problem ??= tryDisk()
    return this.#problem
  }

  /**
   * Gives a sandbox a disk of this many MiB, and returns the folder for its writable layer. Where the host cannot make disks
   * that is the folder of the sandbox; `driver_unavailable` then if a size was asked for.
   */
  async take(sandboxDir: string, diskMib: number | undefined): Promise<string> {
    const problem = await this.problem()
    if (problem !== null) {
      if (diskMib === undefined) return sandboxDir
      throw new ThawError('driver_unavailable', `This host cannot limit the disk of a sandbox: ${problem}`, {
        fix: 'Leave resources.disk_mib out, or see `thaw doctor` for what the host lacks.',
      })
    }
    const sizeMib = await this.#openWithRoom()
    if (diskMib !== undefined && diskMib > sizeMib)
      throw new ThawError('invalid_request', `All sandboxes together have ${sizeMib} MiB of disk on this host, less than ${diskMib}.`, {
        fix: 'Lower resources.disk_mib, or raise sandboxes.storage_mib of the server.',
      })
    const usual = Math.min(this.#options.diskMib, sizeMib)
    const name = ((diskMib ?? usual) === usual ? this.#spares.pop() : undefined) ?? (await this.#make(diskMib ?? usual))
    this.#refill(usual)
    return this.#link(name, sandboxDir)
  }

  /** Gives a sandbox a copy of a disk that was packed by tar, and returns the folder for its writable layer. */
  async takeFrom(sandboxDir: string, packed: string): Promise<string> {
    const problem = await this.problem()
    if (problem !== null) throw new ThawError('driver_unavailable', `This host cannot make disks for sandboxes: ${problem}`)
    await this.#openWithRoom()
    return this.#link(await this.#unpack(packed), sandboxDir)
  }

  async #openWithRoom(): Promise<number> {
    this.#closed = false
    const sizeMib = await this.#open()
    if (freeMib(this.#dir) < minFreeMib) throw full()
    return sizeMib
  }

  async #link(name: string, sandboxDir: string): Promise<string> {
    try {
      symlinkSync(join(this.#dir, name), join(sandboxDir, linkName))
    } catch (error) {
      await this.#unmake(name)
      throw error
    }
    return join(this.#dir, name)
  }

  async #unpack(packed: string): Promise<string> {
    const name = randomBytes(6).toString('hex')
    const folder = join(this.#dir, name)
    try {
      const args = ['--extract', '--sparse', '--file', packed, '--directory', this.#dir, '--transform', `s|.*|${name}.img|`]
      await runCommand('tar', args, { timeoutMs: 600_000 })
      await mountFileSystem(`${folder}.img`, folder, 'nodiscard')
      return name
    } catch (error) {
      await this.#unmake(name)
      if (error instanceof ThawError && /No space left on device/.test(JSON.stringify(error.details))) throw full()
      throw error
    }
  }

  /** Removes the disk of a sandbox, with all that is on it. Idempotent. */
  async give(sandboxDir: string): Promise<void> {
    const folder = diskOf(sandboxDir)
    if (folder !== null) await this.#unmake(basename(folder))
  }

  /** Removes what is ready for sandboxes to come, and, once none is left, the volume. */
  async close(sandboxesLeft: boolean): Promise<void> {
    this.#closed = true
    await this.#refilling
    for (const name of this.#spares.splice(0)) await this.#unmake(name)
    if (sandboxesLeft) return
    await this.#opened?.catch(() => undefined)
    this.#opened = undefined
    for (const mounted of mountsBelow(this.#dir)) await unmount(mounted)
    await detachLoops(this.#image)
    rmSync(this.#image, { force: true })
    rmSync(this.#dir, { recursive: true, force: true })
  }

  async #open(): Promise<number> {
    const known = this.#opened
    if (known !== undefined) {
      const sizeMib = await known
      if (isWritable(this.#dir)) return sizeMib
      if (this.#opened === known) this.#opened = undefined
      return this.#open()
    }
    this.#spares.length = 0
    const opening = this.#adopt().then((adopted) => adopted ?? this.#makeVolume())
    this.#opened = opening
    opening.catch(() => {
      if (this.#opened === opening) this.#opened = undefined
    })
    return opening
  }

  /** The volume of an earlier server, without the disks that belong to no sandbox. Null: there is none that works. */
  async #adopt(): Promise<number | null> {
    const mounted = mountsBelow(this.#dir)
    if (!mounted.includes(this.#dir)) return null
    if (!isWritable(this.#dir)) {
      // The disk of the host was full, or failed. Sandboxes that have their disks here keep them, such as they are, to their end.
      await runCommand('umount', ['--lazy', this.#dir])
      return null
    }
    const owned = this.#owned()
    for (const file of readdirSync(this.#dir)) {
      const name = basename(file, '.img')
      if (file.endsWith('.img') && !owned.has(name)) await this.#unmake(name)
    }
    const { blocks, bsize } = statfsSync(this.#dir)
    return Math.floor((blocks * bsize) / mib)
  }

  #owned(): Set<string> {
    const ids = existsSync(this.#sandboxesDir) ? readdirSync(this.#sandboxesDir) : []
    return new Set(ids.flatMap((id) => diskOf(join(this.#sandboxesDir, id)) ?? []).map((folder) => basename(folder)))
  }

  async #makeVolume(): Promise<number> {
    // What was on it belonged to sandboxes that a restart of the host has ended, or to the volume that failed.
    for (const mounted of mountsBelow(this.#dir)) await unmount(mounted)
    await detachLoops(this.#image)
    rmSync(this.#image, { force: true })
    rmSync(this.#dir, { recursive: true, force: true })
    const sizeMib = this.#options.storageMib ?? Math.max(minStorageMib, Math.floor(freeMib(this.#options.dataDir) / 2))
    // Files are few and large there. What a disk no longer takes goes back to the host.
    await makeFileSystem(this.#image, this.#dir, { sizeMib, inodes: minInodes, owner: 0, options: 'discard' })
    return sizeMib
  }

  async #make(diskMib: number): Promise<string> {
    const name = randomBytes(6).toString('hex')
    const inodes = Math.max(minInodes, diskMib * inodesPerMib)
    // Room for the tables of the file system, so that what was asked for can be written.
    const sizeMib = diskMib + Math.ceil((inodes * inodeBytes) / mib + diskMib / 256) + 16
    const folder = join(this.#dir, name)
    try {
      await makeFileSystem(`${folder}.img`, folder, { sizeMib, inodes, owner: idShift, options: 'nodiscard' })
      return name
    } catch (error) {
      await this.#unmake(name)
      throw error
    }
  }

  async #unmake(name: string): Promise<void> {
    const folder = join(this.#dir, name)
    // Most of what was written lately need not reach a disk any more; but a huge tree takes longer to delete than to write.
    if (isMounted(folder)) {
      await runCommand('timeout', ['2', 'rm', '-rf', join(folder, 'upper'), join(folder, 'work')]).catch(() => undefined)
      await unmount(folder)
    }
    await detachLoops(`${folder}.img`)
    rmSync(`${folder}.img`, { force: true })
    rmSync(folder, { recursive: true, force: true })
  }

  /** Makes spares one after the other, in the background. One that cannot be made is made, or fails, when it is needed. */
  #refill(diskMib: number): void {
    if (this.#refilling !== undefined || this.#closed || this.#spares.length >= spareCount) return
    const volume = this.#opened
    this.#refilling = new Promise<void>((resolve) => setTimeout(resolve, refillDelayMs))
      .then(async () => {
        if (this.#closed || this.#opened !== volume) return false
        const name = await this.#make(diskMib)
        if (this.#opened === volume) this.#spares.push(name)
        return true
      })
      .catch(() => false)
      .then((made) => {
        this.#refilling = undefined
        if (made) this.#refill(diskMib)
      })
  }
}

/** As many as a file system of this size has by default, and enough for a package manager on a small one. */
const inodesPerMib = 64
const minInodes = 65_536
const inodeBytes = 256

interface FileSystemShape {
  sizeMib: number
  inodes: number
  owner: number
  options: string
}

/**
 * Makes a file that holds a file system, and mounts it. Reads and writes go past the host's page cache, where they would be
 * kept a second time. The loop device goes with its last mount.
 */
async function makeFileSystem(image: string, folder: string, { sizeMib, inodes, owner, options }: FileSystemShape): Promise<void> {
  const features = '^has_journal,^resize_inode'
  const settings = `lazy_itable_init=1,nodiscard,root_owner=${owner}:${owner}`
  const make = `mkfs.ext4 -q -F -b 4096 -I ${inodeBytes} -m 0 -N ${inodes} -O ${features} -E ${settings} "$1"`
  writeFileSync(image, '', { mode: 0o600, flag: 'wx' })
  truncateSync(image, sizeMib * mib)
  await mountFileSystem(image, folder, options, make)
  rmdirSync(join(folder, 'lost+found'))
  // Overlays are mounted by root; nobody else has to walk here.
  chmodSync(folder, 0o700)
  if (owner === 0) return
  for (const name of ['upper', 'work']) {
    mkdirSync(join(folder, name), { mode: 0o755 })
    chownSync(join(folder, name), owner, owner)
  }
}

/** @param make a command that makes it, first; the image is `$1`. */
async function mountFileSystem(image: string, folder: string, options: string, make = ':'): Promise<void> {
  const script = `set -e
PATH="$PATH:/usr/sbin:/sbin"
${make}
device=$(losetup --find --show --direct-io=on "$1")
mount -t ext4 -o "noatime,nodev,nosuid,noinit_itable,errors=remount-ro,$3" "$device" "$2" && mounted=0 || mounted=$?
losetup --detach "$device"
exit "$mounted"`
  mkdirSync(folder, { recursive: true, mode: 0o711 })
  await runCommand('sh', ['-c', script, 'thaw-disk', image, folder, options])
}

function full(): ThawError {
  return new ThawError('disk_full', 'The sandboxes of this host have filled what all of them together may write.', {
    fix: 'Delete sandboxes, or raise sandboxes.storage_mib of the server.',
  })
}

async function tryDisk(): Promise<string | null> {
  const dir = mkdtempSync(join(tmpdir(), 'thaw-probe-'))
  try {
    await makeFileSystem(join(dir, 'disk.img'), join(dir, 'disk'), { sizeMib: 32, inodes: 1024, owner: 0, options: 'discard' })
    return null
  } catch (error) {
    return error instanceof Error ? error.message : String(error)
  } finally {
    if (isMounted(join(dir, 'disk'))) await unmount(join(dir, 'disk'))
    await detachLoops(join(dir, 'disk.img'))
    rmSync(dir, { recursive: true, force: true })
  }
}

/** The disk of a sandbox: the folder at which it is mounted, beside its image. Null: it has none. */
export function diskOf(sandboxDir: string): string | null {
  try {
    return readlinkSync(join(sandboxDir, linkName))
  } catch {
    return null
  }
}

/** A file system that met an error takes nothing any more; not all kernels say so before one tries. */
function isWritable(folder: string): boolean {
  if (!isMounted(folder)) return false
  const path = join(folder, `writable-${randomBytes(6).toString('hex')}`)
  try {
    writeFileSync(path, '')
    rmSync(path)
    return true
  } catch {
    return false
  }
}

function freeMib(folder: string): number {
  const { bavail, bsize } = statfsSync(folder)
  return Math.floor((bavail * bsize) / mib)
}

/** The mount points at and below a folder, the innermost first. */
function mountsBelow(folder: string): string[] {
  return readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .map((line) =>
      (line.split(' ')[4] ?? '').replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8))),
    )
    .filter((path) => path === folder || path.startsWith(`${folder}/`))
    .reverse()
}

function isMounted(folder: string): boolean {
  return mountsBelow(folder).includes(folder)
}

/** Lazily, where something still holds the mount: it goes away with its last user. */
export async function unmount(path: string): Promise<void> {
  if (!isMounted(path)) return
  await runCommand('umount', [path], { timeoutMs: 120_000 }).catch(() => runCommand('umount', ['--lazy', path]))
}

/** Those of an image that was never mounted because something killed the helper. One that is in use goes with its last user. */
async function detachLoops(image: string): Promise<void> {
  const devices = existsSync('/sys/block') ? readdirSync('/sys/block') : []
  for (const device of devices.filter((name) => name.startsWith('loop'))) {
    let backing: string
    try {
      backing = readFileSync(join('/sys/block', device, 'loop', 'backing_file'), 'utf8').trim()
    } catch {
      continue
    }
    if (backing === image) await runCommand('losetup', ['--detach', join('/dev', device)]).catch(() => undefined)
  }
}
