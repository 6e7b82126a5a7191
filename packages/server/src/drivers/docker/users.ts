import { type CreateSpec, idShift } from '../driver.ts'
import type { EngineFacts } from './facts.ts'

/** The first id that people and services of a host may have. */
const firstOrdinary = 1000
export const functionUser = 1000
const nobody = 65_534

/**
 * Without a user namespace an id inside is the same id of the host. So that code is nobody whom the host knows, ordinary
 * users of an image are moved up there, in its files and in its list of users; root and the services stay.
 */
export function moved(id: number): number {
  return id >= firstOrdinary && id !== nobody && id < idShift ? id + idShift : id
}

/** The id inside of who runs a sandbox. */
export function userOf(user: CreateSpec['user'], facts: EngineFacts): number {
  if (user === 'root') return 0
  return facts.remapBase === null ? moved(functionUser) : functionUser
}

/** The id on the engine's host of an id inside. */
export function hostId(inside: number, facts: EngineFacts): number {
  return inside + (facts.remapBase ?? 0)
}

/** The id inside of a file of an unpacked image, whose owners are shifted (`idShift`). */
export function imageOwner(facts: EngineFacts): (id: number) => number {
  return (id) => {
    const inside = id >= idShift ? id - idShift : id
    return facts.remapBase === null ? moved(inside) : inside
  }
}

/** Moves the ids in a passwd or group file as `moved` moves owners. */
export function moveUsers(text: string): string {
  return text
    .split('\n')
    .map((line) =>
      line
        .split(':')
        .map((field, index) => ((index === 2 || index === 3) && /^\d+$/.test(field) ? String(moved(Number(field))) : field))
        .join(':'),
    )
    .join('\n')
}
