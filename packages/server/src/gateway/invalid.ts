import { ThawError } from '@thaw/protocol'
import type { z } from 'zod'

/** A request that does not fit its schema, where the framework does not look itself. */
export function invalidRequest(error: z.ZodError): ThawError {
  const issues = error.issues.map((issue) => ({ path: issue.path.join('.'), message: issue.message }))
  const first = issues[0]
  const where = first !== undefined && first.path !== '' ? `${first.path}: ` : ''
  return new ThawError('invalid_request', `The request does not fit the schema. ${where}${first?.message ?? ''}`, { details: { issues } })
}
