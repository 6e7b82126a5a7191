/** Edit distance of Levenshtein: how many letters must be added, removed or changed to get from one text to the other. */
export function editDistance(from: string, to: string): number {
  let previous = Array.from({ length: to.length + 1 }, (_, index) => index)
  for (let row = 1; row <= from.length; row++) {
    const current = [row]
    for (let column = 1; column <= to.length; column++) {
      const change = (previous[column - 1] ?? 0) + (from[row - 1] === to[column - 1] ? 0 : 1)
      current.push(Math.min(change, (previous[column] ?? 0) + 1, (current[column - 1] ?? 0) + 1))
    }
    previous = current
  }
  return previous[to.length] ?? 0
}

/**
 * The known dotted key that somebody who wrote `unknown` most likely meant, or null when none is near. The last part
 * alone counts too: `queue_length` means `limits.queue_length`.
 */
export function nearestKey(unknown: string, known: Iterable<string>): string | null {
  // Text of a stranger can be long; distances of long texts are slow to compute and mean nothing.
  const wanted = unknown.slice(0, 100).toLowerCase()
  let best: string | null = null
  let bestDistance = Math.max(2, Math.floor(wanted.length / 3)) + 1
  for (const key of known) {
    const last = key.slice(key.lastIndexOf('.') + 1)
    const wantedLast = wanted.slice(wanted.lastIndexOf('.') + 1)
    // A part that merely moved to another group is nearly right: half a letter worse than the same with its group.
    const distance = Math.min(editDistance(wanted, key), editDistance(wantedLast, last) + 0.5)
    if (distance < bestDistance) {
      best = key
      bestDistance = distance
    }
  }
  return best
}
