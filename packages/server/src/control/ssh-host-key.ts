import { chmodSync, closeSync, fsyncSync, openSync, readFileSync, renameSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { ThawError } from '@thaw/protocol'
import ssh2 from 'ssh2'
import { makeKeyPair } from './ssh-key-pair.ts'
import { fingerprintOf } from './ssh-public-key.ts'

export interface SshHostKey {
  /** In the format of OpenSSH. */
  privateKey: string
  /** Type and key, as in known_hosts. */
  publicLine: string
  fingerprint: string
}

const fileName = 'ssh_host_ed25519_key'

/** The key by which clients know this server: that of the data directory, made at the first start. Throws `config_invalid`. */
export function openHostKey(dataDir: string): SshHostKey {
  const path = join(dataDir, fileName)
  const text = readOr(path, () => make(path))
  const key = ssh2.utils.parseKey(text)
  if (key instanceof Error || !key.isPrivateKey()) {
    throw new ThawError('config_invalid', `The SSH host key ${path} cannot be read.`, {
      fix: 'Restore it from a backup; or remove it, and a new one is made, which clients will warn of.',
      cause: key,
    })
  }
  const blob = key.getPublicSSH()
  return { privateKey: text, publicLine: `${key.type} ${blob.toString('base64')}`, fingerprint: fingerprintOf(blob) }
}

function readOr(path: string, make: () => string): string {
  try {
    const text = readFileSync(path, 'utf8')
    chmodSync(path, 0o600)
    return text
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return make()
    throw error
  }
}

/** Complete or not there: half a key would lock everyone out. */
function make(path: string): string {
  const { private: text } = makeKeyPair('thaw')
  const temporary = `${path}.new`
  const file = openSync(temporary, 'w', 0o600)
  try {
    writeSync(file, text)
    fsyncSync(file)
  } finally {
    closeSync(file)
  }
  renameSync(temporary, path)
  return text
}
