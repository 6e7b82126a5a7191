import { readFileSync } from 'node:fs'
import { ThawError } from '@thaw/protocol'

/**
 * What a sandbox sees of the host: mounts that CRIU cannot make from its image alone. They are told to it by their place
 * inside when a snapshot is taken, and with a source when it is restored.
 */
export interface OutsideMount {
  /** Where it is inside. */
  target: string
  /** `given`: a mount of the spec. `device`: a file of /dev. `hidden`: a folder of /proc that shows nothing. */
  source: { kind: 'given' } | { kind: 'device'; path: string } | { kind: 'hidden' }
}

/** File systems that CRIU makes anew, with what is in them. */
const restored = new Set(['proc', 'tmpfs', 'devpts', 'mqueue'])

/** Reads them off a process of the sandbox. Nothing inside may mount, so all of them are ours or the engine's. */
export function outsideMounts(pid: number): OutsideMount[] {
  return parseMounts(readFileSync(`/proc/${pid}/mountinfo`, 'latin1'))
}

/** @param mountinfo as in proc(5): id, parent, device, root, target, options, … - type, source, options. */
export function parseMounts(mountinfo: string): OutsideMount[] {
  const found: OutsideMount[] = []
  for (const line of mountinfo.split('\n').filter(Boolean)) {
    const [left = '', right = ''] = line.split(' - ')
    const [, , , root = '', target = ''] = left.split(' ').map(unescapeOctal)
    const type = right.split(' ')[0] ?? ''
    if (target === '/') continue
    if (isDevice(type, root, target)) found.push({ target, source: { kind: 'device', path: `/dev${root}` } })
    // By the engine, or, in what was restored before, by us.
    else if (target.startsWith('/proc/') && type !== 'proc') found.push({ target, source: { kind: 'hidden' } })
    // A part of a file system is not the sandbox's own, also where the host keeps the data directory in memory.
    else if (!restored.has(type) || (type === 'tmpfs' && root !== '/')) found.push({ target, source: { kind: 'given' } })
  }
  return found
}

/** Single files of the host's /dev, which is a devtmpfs, or a tmpfs where thaw itself runs in a container. */
function isDevice(type: string, root: string, target: string): boolean {
  return root !== '/' && (type === 'devtmpfs' || type === 'tmpfs') && /^\/(dev|proc)\//.test(target)
}

function unescapeOctal(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)))
}

/** A host path for each. Throws `snapshot_incompatible` when the new sandbox does not have what the old one had. */
export function sourcesOf(mounts: OutsideMount[], given: ReadonlyMap<string, string>, emptyFolder: string): Map<string, string> {
  return new Map(
    mounts.map(({ target, source }) => {
      if (source.kind === 'device') return [target, source.path]
      if (source.kind === 'hidden') return [target, emptyFolder]
      const path = given.get(target)
      if (path === undefined)
        throw new ThawError('snapshot_incompatible', `The sandbox of the snapshot has ${target} of the host, which the new one has not.`)
      return [target, path]
    }),
  )
}
