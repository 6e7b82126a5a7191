// The same work as a function of @google-cloud/functions-framework.
import { work } from './work.mjs'

export const handler = (request, response) => {
  response.json(work(request.body))
}
