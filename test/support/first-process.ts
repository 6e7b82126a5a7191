import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { findProcesses } from '../../packages/server/src/drivers/processes.ts'

/** The number, on this machine, of the first process of a sandbox: its agent. Not for the driver docker. */
export function firstProcess(dataDir: string, id: string): number {
  const known = join(dataDir, 'oci', 'sandboxes', id, 'process.json')
  if (existsSync(known)) return (JSON.parse(readFileSync(known, 'utf8')) as { pid: number }).pid
  const [pid] = findProcesses((candidate) => read(`/proc/${candidate}/cmdline`).includes(`/process/${id}/run/agent.sock`))
  if (pid === undefined) throw new Error(`the sandbox ${id} has no agent`)
  return pid
}

function read(path: string): string {
  try {
    return readFileSync(path, 'latin1')
  } catch {
    return ''
  }
}
