import { ThawError } from '@thaw/protocol'

/** Names under which a server on loopback may be addressed. Anything else is a name that was rebound to 127.0.0.1. */
const loopbackNames = /^(?:localhost|[a-z0-9-]+\.localhost|127(?:\.\d{1,3}){3}|\[::1\])(?::\d{1,5})?$/i

/**
 * Refuses what a web page could send to a server that trusts everyone on its machine: a Host that is not this machine,
 * and an Origin other than the server's own pages. `isOurs`: other names that the operator gave to this server.
 */
export function guardLoopback(
  host: string | undefined,
  origin: string | undefined,
  isOurs: (host: string) => boolean = () => false,
): ThawError | null {
  if (host === undefined || !(loopbackNames.test(host) || isOurs(host)))
    return new ThawError('forbidden_host', `The Host ${JSON.stringify(host ?? '')} is not served here.`)
  if (origin === undefined || origin === `http://${host}`) return null
  return new ThawError('forbidden_origin', `Requests from ${JSON.stringify(origin)} are refused.`)
}
