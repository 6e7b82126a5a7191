/**
 * The patterns of .thawignore, which are those of .gitignore: one a line, `#` for comments, `!` takes back, a slash at
 * the start or inside anchors to the folder, a slash at the end means folders only, `*` `?` `[…]` do not cross slashes, `**` does.
 */
export class IgnoreList {
  readonly #rules: { pattern: RegExp; keep: boolean; foldersOnly: boolean }[]

  constructor(text: string) {
    this.#rules = text
      .split(/\r?\n/)
      .map((line) => line.trimEnd())
      .filter((line) => line !== '' && !line.startsWith('#'))
      .map(parseRule)
  }

  /** Whether a path, relative and with `/`, is left out. The last rule that matches decides. */
  ignores(path: string, isFolder: boolean): boolean {
    const rule = this.#rules.findLast((candidate) => (isFolder || !candidate.foldersOnly) && candidate.pattern.test(path))
    return rule !== undefined && !rule.keep
  }
}

function parseRule(line: string): { pattern: RegExp; keep: boolean; foldersOnly: boolean } {
  const keep = line.startsWith('!')
  let glob = keep ? line.slice(1) : line
  const foldersOnly = glob.endsWith('/')
  if (foldersOnly) glob = glob.slice(0, -1)
  const anchored = glob.includes('/')
  if (glob.startsWith('/')) glob = glob.slice(1)
  return { pattern: new RegExp(`^${anchored ? '' : '(?:.*/)?'}${expressionOf(glob)}$`, 's'), keep, foldersOnly }
}

function expressionOf(glob: string): string {
  const token = /\*\*\/|\/\*\*$|\*\*|\*|\?|\[!?[^\]/]+\]|\\.|./gs
  return [...glob.matchAll(token)].map(([part]) => expressionOfToken(part)).join('')
}

function expressionOfToken(part: string): string {
  if (part === '**/') return '(?:.*/)?'
  if (part === '/**') return '/.*'
  if (part === '**') return '.*'
  if (part === '*') return '[^/]*'
  if (part === '?') return '[^/]'
  if (part.length > 2 && part.startsWith('[')) {
    const inverted = part.startsWith('[!')
    const characters = part.slice(inverted ? 2 : 1, -1).replace(/[\\^[]/g, '\\$&')
    return `[${inverted ? '^/' : ''}${characters}]`
  }
  const character = part.length === 2 ? part.slice(1) : part
  return character.replace(/[.*+?^${}()|[\]\\/]/g, '\\$&')
}
