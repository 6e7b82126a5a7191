import { closeSync, constants, existsSync, fstatSync, openSync, watch } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { basename, dirname } from 'node:path'
import { ThawError } from '@thaw/protocol'

const O_PATH = 0x200000

/**
 * Resolves when `path` exists. The folder must exist. A socket may not listen yet at that moment: see `connectUnixSocket`.
 * Rejects when `signal` aborts, with its reason.
 */
export function waitForName(path: string, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const watcher = watch(dirname(path), (_event, name) => {
      if (name === basename(path) && existsSync(path)) finish(resolve)
    })
    const abort = () => finish(() => reject(signal.reason))
    const finish = (then: () => void) => {
      watcher.close()
      signal.removeEventListener('abort', abort)
      then()
    }
    watcher.once('error', (error) => finish(() => reject(error)))
    signal.addEventListener('abort', abort, { once: true })
    if (signal.aborted) abort()
    // It may have appeared before the watch began.
    else if (existsSync(path)) finish(resolve)
  })
}

/**
 * Connects to a Unix socket in a folder that a sandbox can write to. The name is opened without following links and
 * must be a socket; the connection then goes to that very inode, so a name that is swapped for a link to a socket of
 * the host leads nowhere. It also lifts the 108 bytes that a socket's path may have.
 */
export function connectUnixSocket(path: string): Promise<Socket> {
  let fd: number
  try {
    fd = openSync(path, O_PATH | constants.O_NOFOLLOW)
  } catch (cause) {
    return Promise.reject(new ThawError('driver_failed', 'The sandbox has no socket to connect to.', { cause }))
  }
  if (!fstatSync(fd).isSocket()) {
    closeSync(fd)
    return Promise.reject(new ThawError('driver_failed', 'What the sandbox offers as its socket is not one.'))
  }
  return connectTo(`/proc/self/fd/${fd}`, refusedTries).finally(() => closeSync(fd))
}

/** A socket has a name before it listens; a program needs a moment between the two. */
const refusedTries = 100
const refusedPauseMs = 1

function connectTo(path: string, tries: number): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect(path)
    socket.once('error', (cause: NodeJS.ErrnoException) => {
      if (cause.code === 'ECONNREFUSED' && tries > 1) {
        setTimeout(() => connectTo(path, tries - 1).then(resolve, reject), refusedPauseMs)
        return
      }
      reject(new ThawError('driver_failed', 'The socket of the sandbox cannot be connected to.', { cause }))
    })
    socket.once('connect', () => {
      socket.removeAllListeners('error')
      resolve(socket)
    })
  })
}
