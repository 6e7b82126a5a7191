import { spawn } from 'node:child_process'
import { once } from 'node:events'

/**
 * Holds an exclusive lock, between processes too, while `work` runs. `path` names a lock file, which stays.
 *
 * The lock belongs to the kernel (flock(2)), held by a child that ends when our end of its stdin closes: however this
 * process dies, the lock is free again at once, and there is no stale owner to detect. `onWait` is called when
 * somebody else holds it.
 */
export async function withLock<Result>(
  path: string,
  work: () => Promise<Result>,
  options: { signal?: AbortSignal | undefined; onWait?: (() => void) | undefined } = {},
): Promise<Result> {
  const { signal, onWait } = options
  signal?.throwIfAborted()
  // First without waiting, to know whether somebody else holds it.
  const script = 'flock --exclusive --nonblock 9 || { echo wait; flock --exclusive 9; }; echo locked; exec cat'
  const holder = spawn('sh', ['-c', `exec 9>>"$1"; ${script}`, 'lock', path], {
    stdio: ['pipe', 'pipe', 'inherit'],
    // A group of its own, so that abandoning also ends a flock that is waiting.
    detached: true,
  })
  const ended = once(holder, 'close')
  const release = () => holder.stdin.destroy()
  const abandon = () => {
    if (holder.pid !== undefined && holder.exitCode === null) process.kill(-holder.pid, 'SIGKILL')
  }
  signal?.addEventListener('abort', abandon, { once: true })
  holder.stdin.on('error', () => {})
  try {
    let locked = false
    let said = ''
    for await (const chunk of holder.stdout) {
      said += String(chunk)
      if (said.includes('locked')) {
        locked = true
        break
      }
      onWait?.()
    }
    signal?.throwIfAborted()
    if (!locked) throw new Error(`The lock ${path} could not be taken.`)
    signal?.removeEventListener('abort', abandon)
    return await work()
  } finally {
    signal?.removeEventListener('abort', abandon)
    release()
    await ended
  }
}
