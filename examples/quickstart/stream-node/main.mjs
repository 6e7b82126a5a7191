// Streams a Collatz sequence, one JSON line per step: what is yielded is sent at once.
import { setTimeout as pause } from 'node:timers/promises'

export async function* handler({ from }) {
  let value = from
  for (let step = 0; ; step++) {
    yield { step, value }
    if (value <= 1) return
    value = value % 2 === 0 ? value / 2 : 3 * value + 1
    await pause(5)
  }
}
