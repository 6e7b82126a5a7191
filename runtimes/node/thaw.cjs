// What `import { beforeSnapshot, afterRestore } from 'thaw'` gives to the code of a function. CommonJS, so that `import`
// and `require` share it.
'use strict'

const callbacks = { before_snapshot: [], after_restore: [] }

/** Runs `callback` before the instance is frozen: close connections, drop secrets. Awaited, in the order of registration. */
exports.beforeSnapshot = (callback) => register('before_snapshot', callback)

/** Runs `callback` in each copy of the instance after it came back: connect again, draw new ids. */
exports.afterRestore = (callback) => register('after_restore', callback)

function register(hook, callback) {
  if (typeof callback !== 'function') throw new TypeError('The callback must be a function.')
  callbacks[hook].push(callback)
}

/** For the runtime. */
exports.runHook = async (hook) => {
  for (const callback of callbacks[hook] ?? []) await callback()
}
