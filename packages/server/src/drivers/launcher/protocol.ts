/** Where a program's standard streams lead: nowhere, into the answer, or to a file that the server has open, by its number there. */
export type Stream = 'ignore' | 'keep' | number

/** What the launcher is told. */
export type ToLauncher =
  | {
      id: number
      program: string
      args: string[]
      /** Text for its standard input; null: it has none; later: another message brings it. */
      input: string | null | { later: true }
      /** From 1 on; at least standard output and standard error. */
      streams: Stream[]
      /** In a process group of its own, all of which is killed with it. */
      group: boolean
      timeoutMs: number | null
    }
  | { id: number; input: string }
  | { id: number; kill: true }

/** How a program ended, or why it could not be started (`error`). */
export interface Ended {
  code: number | null
  signal: NodeJS.Signals | null
  /** The ends of what was kept, at most 64 KiB each. */
  stdout: string
  stderr: string
  error: { code: string | undefined; message: string } | null
}

export type FromLauncher = Ended & { id: number }
