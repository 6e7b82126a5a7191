export function pathOf(idOrName: string): string {
  return `/v1/sandboxes/${encodeURIComponent(idOrName)}`
}
