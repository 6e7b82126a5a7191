import { openSync, readSync } from 'node:fs'

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

function fromKernel() {
  if (used === pool.length) {
    readSync(device, pool)
    used = 0
  }
  // 53 random bits, as many as a double between 0 and 1 holds.
  return ((pool[used++] >>> 5) * 67108864 + (pool[used++] >>> 6)) / 9007199254740992
}

/** Called in each copy after a restore: forgets what was drawn before it. */
export function reseedRandom() {
  device ??= openSync('/dev/urandom', 'r')
  used = pool.length
  next = fromKernel
}
