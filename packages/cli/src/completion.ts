import type { Command, Option } from 'commander'

/** What has names that the server knows. */
type Named = keyof typeof listOf

/** A command as the shells see it. */
interface Entry {
  /** Words that lead to it, such as `image pull`; empty for thaw itself. */
  path: string
  description: string
  subcommands: { name: string; description: string }[]
  options: { flags: string[]; description: string; values: readonly string[]; named: Named | undefined; takesValue: boolean }[]
  /** Values of its first argument, or where to get them. */
  argument: Named | 'folder' | readonly string[]
}

export const shells = ['bash', 'zsh', 'fish'] as const
export type Shell = (typeof shells)[number]

/** A script that makes `shell` complete commands, options, their values, and the names of functions and sandboxes (asked of the server). */
export function completionScript(program: Command, shell: Shell): string {
  const entries = entriesOf(program, '', program.options)
  if (shell === 'fish') return fish(entries)
  // zsh runs completion functions of bash after loading its bridge.
  const bridge = shell === 'zsh' ? '#compdef thaw\nautoload -U +X bashcompinit && bashcompinit\n' : ''
  return `${bridge}${bash(entries)}`
}

function entriesOf(command: Command, path: string, globals: readonly Option[]): Entry[] {
  const options = path === '' ? globals : [...command.options, ...globals]
  const entry: Entry = {
    path,
    description: command.description(),
    subcommands: [...command.commands.map((child) => ({ name: child.name(), description: child.description() }))],
    options: [
      ...options.map((option) => ({
        flags: [option.long, option.short].filter((flag) => typeof flag === 'string'),
        description: option.description,
        values: option.argChoices ?? [],
        named: namedBy(/<(s\w+)>/.exec(option.flags)?.[1]),
        takesValue: option.required || option.optional,
      })),
      { flags: ['--help', '-h'], description: 'show help', values: [], named: undefined, takesValue: false },
    ],
    argument: argumentOf(command),
  }
  const children = command.commands.flatMap((child) => [child.name(), ...child.aliases()].map((name) => ({ child, name })))
  return [entry, ...children.flatMap(({ child, name }) => entriesOf(child, `${path} ${name}`.trim(), globals))]
}

function argumentOf(command: Command): Entry['argument'] {
  const [first] = command.registeredArguments
  if (first?.argChoices !== undefined) return first.argChoices
  return namedBy(first?.name()) ?? (first?.name() === 'dir' ? 'folder' : [])
}

function namedBy(placeholder: string | undefined): Named | undefined {
  if (placeholder === 'name' || placeholder === 'names') return 'function'
  if (placeholder === 'sandbox' || placeholder === 'sandboxes') return 'sandbox'
  return placeholder === 'snapshot' || placeholder === 'snapshots' ? 'snapshot' : undefined
}

function isNamed(argument: Entry['argument']): argument is Named {
  return typeof argument === 'string' && argument !== 'folder'
}

const listOf = {
  function: 'thaw ls --quiet 2>/dev/null',
  sandbox: 'thaw sandbox ls --quiet 2>/dev/null',
  snapshot: 'thaw snapshot ls --quiet 2>/dev/null',
}

function bash(entries: Entry[]): string {
  const cases = entries.map((entry) => {
    const words = [...entry.subcommands.map((child) => child.name), ...(typeof entry.argument === 'string' ? [] : entry.argument)]
    const dynamic = isNamed(entry.argument) ? ` $(${listOf[entry.argument]})` : ''
    const folders = entry.argument === 'folder' ? `\n      COMPREPLY=($(compgen -d -- "$word"))` : ''
    return `    "${entry.path}")
      options="${entry.options.flatMap((option) => option.flags).join(' ')}"
      words="${words.join(' ')}${dynamic}"${folders} ;;`
  })
  const values = new Map(
    entries.flatMap((entry) =>
      entry.options
        .filter((option) => option.values.length > 0 || option.named !== undefined)
        .flatMap(({ flags, values, named }) =>
          flags.map((flag) => [flag, named === undefined ? values.join(' ') : `$(${listOf[named]})`] as const),
        ),
    ),
  )
  const valueCases = [...values].map(([flag, list]) => `    ${flag}) COMPREPLY=($(compgen -W "${list}" -- "$word")); return ;;`)
  const known = entries.map((entry) => `"${entry.path}"`).join('|')
  return `_thaw() {
  local word="\${COMP_WORDS[COMP_CWORD]}" path="" options="" words="" at next
  COMPREPLY=()
  case "\${COMP_WORDS[COMP_CWORD-1]}" in
${valueCases.join('\n')}
  esac
  for ((at = 1; at < COMP_CWORD; at++)); do
    next="\${path:+$path }\${COMP_WORDS[at]}"
    case "$next" in ${known}) path="$next" ;; esac
  done
  case "$path" in
${cases.join('\n')}
  esac
  if [[ "$word" == -* ]]; then words="$options"; fi
  COMPREPLY+=($(compgen -W "$words" -- "$word"))
}
complete -o default -F _thaw thaw
`
}

function fish(entries: Entry[]): string {
  const lines = ['complete -c thaw -f']
  for (const entry of entries) {
    const condition = conditionOf(entry)
    for (const child of entry.subcommands)
      lines.push(`complete -c thaw -n ${quote(condition)} -a ${child.name} -d ${quote(child.description)}`)
    for (const { flags, description, values, named, takesValue } of entry.options) {
      const names = flags.map((flag) => (flag.startsWith('--') ? `-l ${flag.slice(2)}` : `-s ${flag.slice(1)}`)).join(' ')
      const list = named === undefined ? values.join(' ') : `(${listOf[named]})`
      const value = list !== '' ? ` -x -a ${quote(list)}` : takesValue ? ' -r' : ''
      lines.push(`complete -c thaw -n ${quote(condition)} ${names}${value} -d ${quote(description)}`)
    }
    if (isNamed(entry.argument)) lines.push(`complete -c thaw -n ${quote(condition)} -a ${quote(`(${listOf[entry.argument]})`)}`)
    else if (entry.argument === 'folder') lines.push(`complete -c thaw -n ${quote(condition)} -a '(__fish_complete_directories)'`)
    else if (entry.argument.length > 0) lines.push(`complete -c thaw -n ${quote(condition)} -a ${quote(entry.argument.join(' '))}`)
  }
  return `${lines.join('\n')}\n`
}

function conditionOf(entry: Entry): string {
  if (entry.path === '') return '__fish_use_subcommand'
  const seen = entry.path.split(' ').map((word) => `__fish_seen_subcommand_from ${word}`)
  const children = entry.subcommands.map((child) => child.name).join(' ')
  return [...seen, ...(children === '' ? [] : [`not __fish_seen_subcommand_from ${children}`])].join('; and ')
}

function quote(text: string): string {
  return `'${text.replaceAll('\\', '\\\\').replaceAll("'", "\\'")}'`
}
