/** Which methods a path takes: tells a wrong method (405) from a wrong path (404). */
export class RouteTable {
  readonly #routes: { pattern: RegExp; methods: string[] }[] = []

  add(method: string | string[], url: string): void {
    const source = url.replace(/[.*+?^${}()|[\]\\]/g, (char) => (char === '*' ? '.*' : `\\${char}`)).replace(/:[^/]+/g, '[^/]+')
    this.#routes.push({ pattern: new RegExp(`^${source}/?$`), methods: Array.isArray(method) ? method : [method] })
  }

  methodsOf(path: string): string[] {
    const methods = this.#routes.filter((route) => route.pattern.test(path)).flatMap((route) => route.methods)
    return [...new Set(methods)].sort()
  }
}
