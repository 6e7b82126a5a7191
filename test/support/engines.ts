import type { Driver } from '../../packages/server/src/drivers/driver.ts'

/**
 * Why tests of a driver cannot run here, or null. In CI nothing may be missing: there it throws, so that a missing engine
 * is a failure and not a skip.
 */
export async function whyNot(driver: Driver): Promise<string | null> {
  const probe = await driver.probe()
  if (probe.usable) return null
  const reason = `${driver.kind}: ${probe.missing.map((item) => `${item.what} (${item.fix})`).join(', ')}`
  if (process.env.CI) throw new Error(`CI must have every engine. Missing for ${reason}`)
  return reason
}
