// Sums numbers, and names them by the SHA-256 of their text. Both are awaited, as calls to other services would be.
import { setTimeout as pause } from 'node:timers/promises'

export async function handler({ numbers }) {
  const [total, sha256] = await Promise.all([sum(numbers), digest(numbers.join(','))])
  return { total, sha256 }
}

async function sum(numbers) {
  const terms = await Promise.all(numbers.map((number) => pause(1, number)))
  return terms.reduce((total, term) => total + term, 0)
}

async function digest(text) {
  return Buffer.from(await crypto.subtle.digest('SHA-256', Buffer.from(text))).toString('hex')
}
