import { ThawError } from '@thaw/protocol'

/** An OCI reference in parts: `registry.example:5000/team/app:1.2@sha256:…`. */
export interface Reference {
  /** Host and port, or null for the default registry of the container tools. */
  registry: string | null
  /** With the registry, without tag and digest. */
  name: string
  tag: string | null
  digest: string | null
}

// The grammar of distribution/reference (github.com/distribution/reference, reference.go).
const host = /(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?/
const part = /[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*/
const pattern = new RegExp(
  `^((?:(${host.source})/)?${part.source}(?:/${part.source})*)(?::([A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(sha256:[0-9a-f]{64}))?$`,
)

/** Throws `image_unresolvable` for what is not a reference. */
export function parseReference(ref: string): Reference {
  const match = ref.length <= 512 ? pattern.exec(ref) : null
  if (match === null) {
    throw new ThawError('image_unresolvable', `${JSON.stringify(ref.slice(0, 200))} is not an image reference.`, {
      fix: 'Use host, python, node, go, or a reference such as registry.example/app:1.0, in lower case.',
    })
  }
  const [, name = '', prefix, tag, digest] = match
  // A first part without a dot, port or capital letter is a part of the name.
  const registry = prefix !== undefined && (/[.:A-Z]/.test(prefix) || prefix === 'localhost') ? prefix : null
  return { registry, name, tag: tag ?? null, digest: digest ?? null }
}

/** Whether a registry is this machine itself, where plain HTTP goes over no wire. */
export function isLoopback(registry: string): boolean {
  const name = registry.replace(/:\d+$/, '')
  return name === 'localhost' || name === '[::1]' || /^127(?:\.\d{1,3}){3}$/.test(name)
}
