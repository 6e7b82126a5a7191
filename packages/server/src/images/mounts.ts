import { readFile } from 'node:fs/promises'
import { runCommand } from './command.ts'

/** Ends every mount at or below a folder, deepest first. */
export async function unmountBelow(folder: string): Promise<void> {
  const table = await readFile('/proc/self/mountinfo', 'utf8')
  const points = table
    .split('\n')
    .map((line) => unescapePath(line.split(' ')[4] ?? ''))
    .filter((point) => point === folder || point.startsWith(`${folder}/`))
    .sort((a, b) => b.length - a.length)
  for (const point of points) await runCommand('umount', ['--lazy', point], { timeoutMs: 10_000 })
}

/** Spaces and the like are written as three octal digits there (proc(5)). */
function unescapePath(path: string): string {
  return path.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)))
}
