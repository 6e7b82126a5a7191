import { createPublicKey, hash } from 'node:crypto'
import { type SshKeyType, sshKeyTypes, ThawError } from '@thaw/protocol'
import ssh2, { type ParsedKey } from 'ssh2'

export interface SshPublicKey {
  type: SshKeyType
  /** Type and key in base64: a line of authorized_keys without its comment. */
  line: string
  /** SHA256:… as ssh-keygen prints it. */
  fingerprint: string
  key: ParsedKey
}

const leastRsaBits = 2048
const mostRsaBits = 16_384

/** Reads what somebody uploaded as a public key. Throws `ssh_key_invalid`, which says what it is instead. */
export function readPublicKey(text: string): SshPublicKey {
  if (text.includes('PRIVATE KEY')) {
    throw invalid(
      'This is a private key.',
      'Send the file that ends in .pub. Who saw the private key can use it: make another pair, and do not use this one any more.',
    )
  }
  const line = text.trim()
  if (/[\r\n]/.test(line)) throw invalid('A public key is one line, and its comment holds no line breaks.')
  if (/\p{Cc}/u.test(line.replaceAll('\t', ' '))) throw invalid('The key holds control characters.')
  const [type = '', encoded = ''] = line.split(/[ \t]+/)
  const known = sshKeyTypes.find((candidate) => candidate === type)
  if (known === undefined) {
    if (type.startsWith('sk-')) throw invalid('Keys of hardware tokens (sk-…) cannot log in here.')
    if (type.includes('-cert-v01@')) throw invalid('This is a certificate, not a public key.')
    throw invalid(`${JSON.stringify(type.slice(0, 40))} is not a type of key that is taken: ${sshKeyTypes.join(', ')}.`)
  }
  const blob = Buffer.from(encoded, 'base64')
  if (encoded === '' || blob.toString('base64').replace(/=+$/, '') !== encoded.replace(/=+$/, ''))
    throw invalid('The key is cut off, or not base64.')
  const fields = fieldsOf(blob)
  if (fields === null || fields[0]?.toString('latin1') !== type) throw invalid('The key is cut off, or not what its type says.')
  if (known === 'ssh-rsa') checkRsa(fields)
  const key = ssh2.utils.parseKey(`${type} ${blob.toString('base64')}`)
  if (key instanceof Error) throw invalid('The key cannot be read.', undefined, key)
  try {
    // Finds points that are on no curve, which parsing does not.
    createPublicKey(key.getPublicPEM())
  } catch (error) {
    throw invalid('The key is not valid.', undefined, error)
  }
  return { type: known, line: `${type} ${blob.toString('base64')}`, fingerprint: fingerprintOf(blob), key }
}

/** SHA256:… of a public key as it is on the wire. */
export function fingerprintOf(blob: Buffer): string {
  return `SHA256:${hash('sha256', blob, 'base64').replace(/=+$/, '')}`
}

/** The strings of the wire format (RFC 4251, section 5), or null. */
function fieldsOf(blob: Buffer): Buffer[] | null {
  const fields: Buffer[] = []
  for (let at = 0; at < blob.length; ) {
    if (at + 4 > blob.length) return null
    const end = at + 4 + blob.readUInt32BE(at)
    if (end > blob.length) return null
    fields.push(blob.subarray(at + 4, end))
    at = end
  }
  return fields
}

/** RFC 4253, section 6.6: type, e, n. */
function checkRsa(fields: Buffer[]): void {
  const modulus = fields[2]
  if (fields.length !== 3 || modulus === undefined) throw invalid('The key is cut off, or not what its type says.')
  const digits = modulus.toString('hex').replace(/^0+/, '')
  const bits = digits === '' ? 0 : BigInt(`0x${digits}`).toString(2).length
  if (bits < leastRsaBits) throw invalid(`An RSA key of ${bits} bits is too weak: ${leastRsaBits} is the least.`)
  if (bits > mostRsaBits) throw invalid(`An RSA key of ${bits} bits is too large: ${mostRsaBits} is the most.`)
}

function invalid(message: string, fix?: string, cause?: unknown): ThawError {
  return new ThawError('ssh_key_invalid', message, { ...(fix === undefined ? {} : { fix }), cause })
}
