/** Edit distance of Levenshtein. */
function distance(from: string, to: string): number {
  let previous = Array.from({ length: to.length + 1 }, (_, index) => index)
  for (const [row, letter] of [...from].entries()) {
    const current = [row + 1]
    for (let column = 1; column <= to.length; column++) {
      const change = (previous[column - 1] ?? 0) + (letter === to[column - 1] ? 0 : 1)
      current.push(Math.min(change, (previous[column] ?? 0) + 1, (current[column - 1] ?? 0) + 1))
    }
    previous = current
  }
  return previous[to.length] ?? 0
}

/** Whether somebody who wrote `word` may have meant `known`: a slip of a letter in three. */
export function isNear(word: string, known: string): boolean {
  return distance(word.slice(0, 100).toLowerCase(), known.toLowerCase()) <= Math.max(1, Math.floor(Math.max(word.length, known.length) / 3))
}

/**
 * The known dotted key that was most likely meant by `word`, or null. The last part alone counts too, and so does its
 * beginning: `memory` means `resources.memory_mib`.
 */
export function nearestKey(word: string, known: readonly string[]): string | null {
  const last = word.slice(word.lastIndexOf('.') + 1).toLowerCase()
  const lastOf = (key: string) => key.slice(key.lastIndexOf('.') + 1)
  return (
    known.find((key) => lastOf(key) === last) ??
    known.find((key) => last.length > 2 && lastOf(key).startsWith(last)) ??
    known.filter((key) => isNear(last, lastOf(key))).sort((a, b) => distance(last, lastOf(a)) - distance(last, lastOf(b)))[0] ??
    null
  )
}
