/**
 * Ids are `prefix-` and 26 characters of Crockford base32 in lower case: 48 bits of milliseconds, then 80 random
 * bits (the layout of ULID). They sort by time and fit a DNS label.
 */
const alphabet = '0123456789abcdefghjkmnpqrstvwxyz'

export const idPrefixes = ['fn', 'ver', 'inv', 'sbx', 'snap', 'img', 'req', 'key', 'sshk'] as const
export type IdPrefix = (typeof idPrefixes)[number]

// Random bytes are drawn in bulk: one call to the generator serves 409 ids, and this runs once per invocation.
const pool = new Uint8Array(4090)
let poolOffset = pool.length

export function newId(prefix: IdPrefix, now: number = Date.now()): string {
  if (poolOffset + 10 > pool.length) {
    crypto.getRandomValues(pool)
    poolOffset = 0
  }
  let time = ''
  let rest = now
  for (let i = 0; i < 10; i++) {
    time = alphabet[rest % 32] + time
    rest = Math.floor(rest / 32)
  }
  let random = ''
  for (let i = 0; i < 2; i++) {
    // Five bytes are 40 bits: eight characters of five bits each.
    const b0 = pool[poolOffset++] as number
    const b1 = pool[poolOffset++] as number
    const b2 = pool[poolOffset++] as number
    const b3 = pool[poolOffset++] as number
    const b4 = pool[poolOffset++] as number
    random +=
      (alphabet[b0 >> 3] as string) +
      alphabet[((b0 & 7) << 2) | (b1 >> 6)] +
      alphabet[(b1 >> 1) & 31] +
      alphabet[((b1 & 1) << 4) | (b2 >> 4)] +
      alphabet[((b2 & 15) << 1) | (b3 >> 7)] +
      alphabet[(b3 >> 2) & 31] +
      alphabet[((b3 & 3) << 3) | (b4 >> 5)] +
      alphabet[b4 & 31]
  }
  return `${prefix}-${time}${random}`
}

export const idPattern = /^[a-z]{2,8}-[0-9a-hjkmnp-tv-z]{26}$/
