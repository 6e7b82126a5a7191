import { access, constants, readdir, readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { UsageError } from './errors.ts'

export interface Guess {
  runtime: 'python' | 'node' | 'go' | 'custom'
  contract: 'handler' | 'stdio'
  /** Left to the server where it has nothing to choose: a Go program is the package main of its folder. */
  handler: string | undefined
  /** The file that was looked at. */
  main: string | undefined
  /** What was seen that led here, for the person who deploys. */
  reasons: string[]
}

interface Folder {
  path: string
  names: ReadonlySet<string>
}

/** Names under which people look for the beginning of a program, the most telling first. */
const pythonMains = ['main.py', 'handler.py', 'app.py', 'index.py', 'lambda_function.py']
const nodeMains = ['main', 'index', 'handler', 'app'].flatMap((stem) => [`${stem}.mjs`, `${stem}.js`, `${stem}.cjs`])
const handlerNames = ['handler', 'lambda_handler', 'handle']

/**
 * Looks at a folder and says what kind of function lies in it, only among those of `runtime` when it is given. Throws a
 * usage error when there is none, or several.
 */
export async function guessFunction(path: string, runtime?: string): Promise<Guess> {
  const folder = await readFolder(path)
  const guesses = [await guessPython(folder), await guessNode(folder), await guessGo(folder), await guessCustom(folder)]
  const found = guesses.filter((guess) => guess !== null).filter((guess) => runtime === undefined || guess.runtime === runtime)
  // A Python function may bring a package.json for its tools: the language that has a handler is meant.
  const withHandler = found.filter((guess) => guess.contract === 'handler')
  const candidates = withHandler.length > 0 ? withHandler : found
  const [only, ...others] = candidates
  if (only === undefined) {
    throw new UsageError(
      `${path} holds no program that thaw knows: no main.py, main.mjs, package.json, go.mod or bootstrap.`,
      'Name the folder of the code, or say what it is with --runtime and --handler.',
    )
  }
  if (others.length > 0) {
    const names = candidates.map((guess) => `${guess.runtime} (${guess.reasons[0]})`).join(' and ')
    throw new UsageError(`${path} could be ${names}.`, 'Say which with --runtime.')
  }
  if (only.runtime === 'custom' && !(await isExecutable(join(path, 'bootstrap')))) {
    throw new UsageError(`${join(path, 'bootstrap')} is not executable.`, `Type \`chmod +x ${join(path, 'bootstrap')}\`, and deploy again.`)
  }
  return only
}

const handlerExtensions = { python: ['.py'], node: ['.mjs', '.js', '.cjs', '.ts', '.mts', '.cts'] } as const

/**
 * What a handler means that was said: a file of this name is a program, or the main file of a web server; else
 * `file.function` is a function in such a file. Throws a usage error when there is neither.
 */
export async function guessFromHandler(
  path: string,
  handler: string,
  said: { runtime?: string | undefined; contract?: string | undefined },
): Promise<Pick<Guess, 'reasons'> & Partial<Pick<Guess, 'runtime' | 'contract'>>> {
  await readFolder(path)
  if (await exists(join(path, handler))) {
    const runtime = languages.find((language) => handlerExtensions[language].some((extension) => handler.endsWith(extension)))
    const reasons = [`${handler} is a file`]
    return { runtime: runtime ?? (await guessFunction(path, said.runtime)).runtime, contract: 'stdio', reasons }
  }
  // Go finds its handler in the code, and an executable may be made by the build: nothing can be told from here.
  if (said.runtime === 'go' || said.runtime === 'custom') return { reasons: [] }
  const dot = handler.lastIndexOf('.')
  const stem = handler.slice(0, Math.max(dot, 0))
  const tried = languages
    .filter((language) => said.runtime === undefined || said.runtime === language)
    .flatMap((runtime) => handlerExtensions[runtime].map((extension) => ({ runtime, file: `${stem}${extension}` })))
  const found: typeof tried = []
  const mayBeFunction = stem !== '' && (said.contract === undefined || said.contract === 'handler')
  for (const candidate of mayBeFunction ? tried : []) if (await exists(join(path, candidate.file))) found.push(candidate)
  const [first] = found
  if (first === undefined) {
    const files = !mayBeFunction ? '' : `, nor ${tried.map(({ file }) => file).join(', ')}`
    throw new UsageError(
      `The handler ${handler} is not in ${path}: there is no file ${handler}${files}.`,
      'Name a function as file.function, such as main.handler, or a program by its file, such as main.py.',
    )
  }
  if (new Set(found.map(({ runtime }) => runtime)).size > 1) {
    throw new UsageError(`The handler ${handler} could be in ${found.map(({ file }) => file).join(' and ')}.`, 'Say which with --runtime.')
  }
  return { runtime: first.runtime, contract: 'handler', reasons: [`${handler} means ${handler.slice(dot + 1)} of ${first.file}`] }
}

const languages = ['python', 'node'] as const

async function readFolder(path: string): Promise<Folder> {
  const isFolder = await stat(path).then(
    (found) => found.isDirectory(),
    () => null,
  )
  if (isFolder === null) throw new UsageError(`There is no folder ${path}.`, 'Name the folder that holds the code.')
  if (!isFolder) throw new UsageError(`${path} is a file.`, 'Name the folder that it lies in.')
  return { path, names: new Set(await readdir(path)) }
}

async function guessPython(folder: Folder): Promise<Guess | null> {
  const single = [...folder.names].filter((name) => name.endsWith('.py') && name !== 'setup.py')
  const main = pythonMains.find((name) => folder.names.has(name)) ?? (single.length === 1 ? single[0] : undefined)
  if (main === undefined) return null
  const reasons = [`${main} is there`]
  if (folder.names.has('requirements.txt')) reasons.push('requirements.txt will be installed')
  const source = await readFile(join(folder.path, main), 'utf8')
  const name = handlerNames.find((candidate) =>
    new RegExp(`^(?:async\\s+)?def\\s+${candidate}\\s*\\(|^${candidate}\\s*=`, 'm').test(source),
  )
  return withHandler('python', main, name, reasons)
}

async function guessNode(folder: Folder): Promise<Guess | null> {
  const reasons: string[] = []
  let main = nodeMains.find((name) => folder.names.has(name))
  if (folder.names.has('package.json')) {
    const manifest = await readManifest(join(folder.path, 'package.json'))
    const named = manifest.main?.replace(/^\.\//, '')
    if (named !== undefined && (await exists(join(folder.path, named)))) {
      main = named
      reasons.push(`package.json names ${main} as its main`)
    } else if (main !== undefined) {
      reasons.push(`package.json and ${main} are there`)
    }
    if (manifest.dependencies) reasons.push('its dependencies will be installed')
  } else if (main !== undefined) {
    reasons.push(`${main} is there`)
  }
  if (main === undefined) return null
  const source = await readFile(join(folder.path, main), 'utf8')
  return withHandler(
    'node',
    main,
    handlerNames.find((name) => exportsName(source, name)),
    reasons,
  )
}

async function guessGo(folder: Folder): Promise<Guess | null> {
  const files = [...folder.names].filter((name) => name.endsWith('.go') && !name.endsWith('_test.go'))
  if (files.length === 0) return null
  const reasons = [folder.names.has('go.mod') ? 'go.mod is there' : `${files.includes('main.go') ? 'main.go' : files[0]} is there`]
  const sources = await Promise.all(files.map((name) => readFile(join(folder.path, name), 'utf8')))
  if (sources.some((source) => /\bfunction\.Start\s*\(/.test(source))) {
    return { runtime: 'go', contract: 'handler', handler: undefined, main: undefined, reasons: [...reasons, 'it calls function.Start'] }
  }
  return {
    runtime: 'go',
    contract: 'stdio',
    handler: undefined,
    main: undefined,
    reasons: [...reasons, 'it does not call function.Start, so it runs as a program'],
  }
}

async function guessCustom(folder: Folder): Promise<Guess | null> {
  if (!folder.names.has('bootstrap')) return null
  return {
    runtime: 'custom',
    contract: 'stdio',
    handler: './bootstrap',
    main: './bootstrap',
    reasons: ['an executable named bootstrap is there'],
  }
}

function withHandler(runtime: 'python' | 'node', main: string, name: string | undefined, reasons: string[]): Guess {
  if (name === undefined) {
    return { runtime, contract: 'stdio', handler: main, main, reasons: [...reasons, 'it has no handler, so it runs as a program'] }
  }
  const stem = main.replace(/\.[a-z]+$/, '')
  return {
    runtime,
    contract: 'handler',
    handler: `${stem}.${name}`,
    main,
    reasons: [...reasons, `it ${runtime === 'node' ? 'exports' : 'defines'} ${name}`],
  }
}

function exportsName(source: string, name: string): boolean {
  const declared = new RegExp(`\\bexport\\s+(?:async\\s+)?(?:function\\s*\\*?|const|let|var|class)\\s*${name}\\b`)
  const listed = new RegExp(`\\bexport\\s*\\{[^}]*\\b${name}\\b[^}]*\\}`)
  const assigned = new RegExp(`\\bexports\\.${name}\\s*=|\\bmodule\\.exports\\s*=\\s*\\{[^}]*\\b${name}\\b`)
  return declared.test(source) || listed.test(source) || assigned.test(source)
}

async function readManifest(path: string): Promise<{ main?: string; dependencies?: object }> {
  try {
    const { main, dependencies } = JSON.parse(await readFile(path, 'utf8')) as Record<string, unknown>
    return {
      ...(typeof main === 'string' ? { main } : {}),
      ...(typeof dependencies === 'object' && dependencies !== null ? { dependencies } : {}),
    }
  } catch (error) {
    throw new UsageError(`${path} cannot be read: ${error instanceof Error ? error.message : String(error)}`, 'Repair the file.')
  }
}

async function isExecutable(path: string): Promise<boolean> {
  return access(path, constants.X_OK).then(
    () => true,
    () => false,
  )
}

async function exists(path: string): Promise<boolean> {
  return stat(path).then(
    (found) => found.isFile(),
    () => false,
  )
}
