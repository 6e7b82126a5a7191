import { readdirSync, readFileSync } from 'node:fs'
import { ThawError } from '@thaw/protocol'
import type { Cgroups } from './cgroup.ts'

/**
 * vfork: the parent waits in the kernel, where no tracer can stop it, until its child starts a program or ends. If both are stopped
 * in between, CRIU waits for the parent for ever. Shells and Go start every program like that.
 */
const cloneVfork = 0x4000
/** By the numbers of x86-64 and arm64; `clone3` does not show its flags here, but only such a one is found waiting. */
const calls = process.arch === 'arm64' ? { vfork: -1, clone: 220, clone3: 435 } : { vfork: 58, clone: 56, clone3: 435 }

/** Whether a line of /proc/PID/syscall (proc(5)) is that of a process that waits in vfork. */
export function waitsInVfork(syscall: string): boolean {
  const [number, flags] = syscall.split(' ')
  if (number === undefined || !/^\d+$/.test(number)) return false
  const call = Number(number)
  if (call === calls.clone) return (Number(flags) & cloneVfork) !== 0
  return call === calls.vfork || call === calls.clone3
}

/** It takes a program's start; on a busy machine some of them. */
const tries = 200
const pauseMs = 2

/** Stops all processes of a group at a moment when none of them waits in vfork. Throws `snapshot_failed` when there is none. */
export async function freezeOutsideVfork(cgroups: Cgroups, cgroup: string): Promise<void> {
  for (let attempt = 0; attempt < tries; attempt++) {
    await cgroups.freeze(cgroup, true)
    if (!cgroups.processes(cgroup).some(hasVfork)) return
    await cgroups.freeze(cgroup, false)
    await new Promise((resolve) => setTimeout(resolve, pauseMs))
  }
  throw new ThawError('snapshot_failed', 'The sandbox starts programs all the time: no moment was found to stop it at; it goes on.')
}

function hasVfork(pid: number): boolean {
  try {
    return readdirSync(`/proc/${pid}/task`).some((thread) => {
      try {
        return waitsInVfork(readFileSync(`/proc/${pid}/task/${thread}/syscall`, 'latin1'))
      } catch {
        return false
      }
    })
  } catch {
    // It has ended.
    return false
  }
}
