import { idShift, idShiftRange } from '../drivers/driver.ts'

export { idShift, idShiftRange }

/** What the kernel calls the user that owns what nobody in a namespace owns. */
const nobody = 65_534

/** The id on this host of an id inside an image. Ids beyond the range become `nobody`: a sandbox could not own them. */
export function shiftId(id: number): number {
  return idShift + (Number.isInteger(id) && id >= 0 && id < idShiftRange ? id : nobody)
}
