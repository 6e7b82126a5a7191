import { openSync, readSync } from 'node:fs'
import { createRequire } from 'node:module'
import { fileURLToPath } from 'node:url'

const require = createRequire(import.meta.url)

/**
 * All copies of a restored instance would draw the same numbers from Math.random, because V8 offers no way to seed the
 * generator of a realm again. So Math.random is replaced before user code can take a reference to it, at first by a call
 * of V8's own; from the first restore on, by numbers that come from the kernel, whose generator the hypervisor reseeds.
 */
const native = Math.random
let next = native

Math.random = function random() {
  return next()
}

const pool = new Uint32Array(1024)
let used = pool.length
let device
let crypto

function fromKernel() {
  if (used === pool.length) {
    readSync(device, pool)
    used = 0
  }
  // 53 random bits, as many as a double between 0 and 1 holds.
  return ((pool[used++] >>> 5) * 67108864 + (pool[used++] >>> 6)) / 9007199254740992
}

/** What may be slow is done once, before the snapshot. */
export function prepareReseed() {
  device ??= openSync('/dev/urandom', 'r')
  crypto ??= require('node:crypto')
}

/** Called in each copy after a restore: forgets what was drawn before it. */
export function reseed() {
  device ??= openSync('/dev/urandom', 'r')
  used = pool.length
  next = fromKernel
  reseedOpenSsl()
  drainCaches()
}

const library = fileURLToPath(new URL('./reseed.node', import.meta.url))

/**
 * The generator behind node:crypto, Web Crypto and TLS belongs to OpenSSL, which notices a fork but not a restore, and Node.js has
 * no call that seeds it. Loading this library, which is no add-on and does not stay loaded, is such a call: it has nothing but
 * an initializer, RAND_poll.
 */
function reseedOpenSsl() {
  try {
    process.dlopen({ exports: {} }, library)
  } catch (error) {
    if (!/did not self-register/.test(error.message)) throw error
  }
}

/** Node.js keeps random bytes at hand for these two: 128 ids, and 1024 numbers of 6 bytes each. One round leaves only new ones. */
function drainCaches() {
  crypto ??= require('node:crypto')
  const { randomInt, randomUUID } = crypto
  for (let count = 0; count < 128; count++) randomUUID()
  for (let count = 0; count < 1024; count++) randomInt(2)
}
