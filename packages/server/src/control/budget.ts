/**
 * What all instances of this host together may take. Memory is counted as promised (the limit of each instance), so
 * that a host never promises more than it has.
 */
export class Budget {
  readonly #maxInstances: number
  readonly #memoryMib: number
  #instances = 0
  #promisedMib = 0

  constructor(limits: { maxInstances: number; memoryMib: number }) {
    this.#maxInstances = limits.maxInstances
    this.#memoryMib = limits.memoryMib
  }

  /** False when the host is full; nothing is taken then. */
  take(memoryMib: number): boolean {
    if (this.#instances >= this.#maxInstances || this.#promisedMib + memoryMib > this.#memoryMib) return false
    this.#instances++
    this.#promisedMib += memoryMib
    return true
  }

  /** Counts what is there already, whether it fits or not. */
  force(memoryMib: number): void {
    this.#instances++
    this.#promisedMib += memoryMib
  }

  /** Whether so much would fit into an empty host. */
  couldEverFit(memoryMib: number): boolean {
    return memoryMib <= this.#memoryMib
  }

  give(memoryMib: number): void {
    this.#instances--
    this.#promisedMib -= memoryMib
  }
}
