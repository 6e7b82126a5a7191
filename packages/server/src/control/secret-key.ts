import { createCipheriv, createDecipheriv, createHash, randomBytes } from 'node:crypto'
import { chmodSync, closeSync, fsyncSync, linkSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs'
import { dirname } from 'node:path'
import { ThawError } from '@thaw/protocol'

const keyBytes = 32
/** The size that AES-GCM is specified for (NIST SP 800-38D, 8.2): random ones serve 2^32 writes under one key. */
const nonceBytes = 12
const tagBytes = 16

/**
 * Seals values with AES-256-GCM. A sealed value is nonce, ciphertext and tag, bound to its name: in the place of
 * another it does not open.
 */
export class SecretKey {
  /** Tells keys apart and gives nothing of them away. */
  readonly id: string
  readonly #key: Buffer

  constructor(key: Buffer) {
    this.#key = key
    this.id = createHash('sha256').update('thaw secrets key id\0').update(key).digest('hex').slice(0, 16)
  }

  seal(name: string, value: string): Buffer {
    const nonce = randomBytes(nonceBytes)
    const cipher = createCipheriv('aes-256-gcm', this.#key, nonce).setAAD(Buffer.from(name))
    return Buffer.concat([nonce, cipher.update(value, 'utf8'), cipher.final(), cipher.getAuthTag()])
  }

  /** Throws `secret_unreadable` when it was sealed with another key or for another name, or was changed since. */
  open(name: string, sealed: Uint8Array): string {
    try {
      const tag = sealed.subarray(-tagBytes)
      const decipher = createDecipheriv('aes-256-gcm', this.#key, sealed.subarray(0, nonceBytes), { authTagLength: tagBytes })
      decipher.setAAD(Buffer.from(name)).setAuthTag(tag)
      return Buffer.concat([decipher.update(sealed.subarray(nonceBytes, -tagBytes)), decipher.final()]).toString('utf8')
    } catch (cause) {
      throw new ThawError('secret_unreadable', `The secret ${name} cannot be decrypted.`, { cause })
    }
  }
}

/** Reads the key, or makes it where there is none and none is needed. Throws `secret_unreadable`. */
export function openSecretKey(path: string, mayMake: boolean): SecretKey {
  const found = readKey(path)
  if (found !== null) return new SecretKey(found)
  if (!mayMake)
    throw new ThawError('secret_unreadable', `There are secrets, but the key that they were written with is not there: ${path}.`)
  makeKey(path)
  return new SecretKey(readKey(path) as Buffer)
}

function readKey(path: string): Buffer | null {
  let key: Buffer
  try {
    // A backup may have been put back with the mode of any other file.
    chmodSync(path, 0o600)
    key = readFileSync(path)
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return null
    throw new ThawError('secret_unreadable', `The key of the secrets cannot be read: ${(cause as Error).message}`, { cause })
  }
  if (key.length !== keyBytes) throw new ThawError('secret_unreadable', `${path} is no key: it has ${key.length} bytes, not ${keyBytes}.`)
  return key
}

/** Written and synced under another name first: a crash leaves a whole key or none. */
function makeKey(path: string): void {
  const draft = `${path}.new`
  rmSync(draft, { force: true })
  const file = openSync(draft, 'wx', 0o600)
  try {
    writeSync(file, randomBytes(keyBytes))
    fsyncSync(file)
  } finally {
    closeSync(file)
  }
  // Unlike a rename, a link never takes the place of a key that is there.
  linkSync(draft, path)
  rmSync(draft)
  const folder = openSync(dirname(path), 'r')
  try {
    fsyncSync(folder)
  } finally {
    closeSync(folder)
  }
}
