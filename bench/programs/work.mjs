/** The work of every Node contender: the same JSON in, the same JSON out. */
export function work(event) {
  let sum = 0
  for (const number of event.numbers) sum += number
  return { hello: event.name, count: event.numbers.length, sum }
}
