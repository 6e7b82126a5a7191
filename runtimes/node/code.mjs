import { existsSync } from 'node:fs'
import module from 'node:module'
import { resolve } from 'node:path'
import { pathToFileURL } from 'node:url'

const thawUrl = new URL('./thaw.cjs', import.meta.url).href
const extensions = ['.mjs', '.js', '.cjs', '.mts', '.ts', '.cts']

/** The handler is not where, or not what, the function's settings say. */
class HandlerError extends Error {
  name = 'HandlerError'
}

/** @returns the function that `handler`, such as `main.handler` or `dir/file.default`, names. Rejects with what is wrong. */
export async function loadHandler(codeDir, handler) {
  const dot = handler.lastIndexOf('.')
  if (dot <= 0 || dot === handler.length - 1) {
    throw new HandlerError(`The handler "${handler}" must have the form file.function, such as main.handler.`)
  }
  const exportName = handler.slice(dot + 1)
  const file = findFile(codeDir, handler.slice(0, dot))
  provideThaw()
  const namespace = await importFile(file)
  const found = pickExport(namespace, exportName)
  if (found === undefined) {
    const names = Object.keys(namespace).filter((name) => name !== 'module.exports')
    throw new HandlerError(`${file} has no export "${exportName}". It exports: ${names.join(', ') || 'nothing'}.`)
  }
  if (typeof found !== 'function') throw new HandlerError(`The export "${exportName}" of ${file} is not a function but ${typeof found}.`)
  return found
}

async function importFile(file) {
  try {
    return await import(pathToFileURL(file).href)
  } catch (error) {
    // V8 keeps the place of a syntax error in an ES module from us; a checking Node.js prints it.
    if (error instanceof SyntaxError && !error.stack.includes(file)) error.stack = (await checkSyntax(file)) ?? error.stack
    throw error
  }
}

async function checkSyntax(file) {
  const { spawnSync } = await import('node:child_process')
  const { stderr } = spawnSync(process.execPath, ['--check', file], { encoding: 'utf8' })
  const end = stderr?.indexOf('\n\nNode.js v') ?? -1
  return end === -1 ? undefined : stderr.slice(0, end)
}

function findFile(codeDir, name) {
  const path = resolve(codeDir, name)
  const extension = extensions.find((each) => existsSync(path + each))
  if (extension === undefined) throw new HandlerError(`There is no ${name}{${extensions.join(',')}} in ${codeDir}.`)
  if (extension.endsWith('ts') && !process.features.typescript) {
    throw new HandlerError(`${name}${extension} needs a Node.js that strips types (22.18 or later); this is ${process.version}.`)
  }
  return path + extension
}

/** The exports of a CommonJS module that Node.js could not see in its text are behind `default`. */
function pickExport(namespace, name) {
  const main = namespace.default
  if (name === 'default') return typeof main === 'object' && main !== null && 'default' in main ? main.default : main
  return namespace[name] ?? main?.[name]
}

/** Makes the name `thaw` mean thaw.cjs in the code of the function, which has no dependency of that name. */
function provideThaw() {
  if (typeof module.registerHooks === 'function') {
    module.registerHooks({
      resolve: (specifier, context, next) =>
        specifier === 'thaw' ? { url: thawUrl, format: 'commonjs', shortCircuit: true } : next(specifier, context),
    })
    return
  }
  // Older than 22.15: hooks for `import` run in a thread of their own, those for `require` are the loader's own function.
  const path = module.createRequire(import.meta.url).resolve('./thaw.cjs')
  const resolveFilename = module._resolveFilename
  module._resolveFilename = function (request, ...rest) {
    return request === 'thaw' ? path : resolveFilename.call(this, request, ...rest)
  }
  const source = `export async function resolve(specifier, context, next) {
    return specifier === 'thaw' ? { url: ${JSON.stringify(thawUrl)}, format: 'commonjs', shortCircuit: true } : next(specifier, context)
  }`
  module.register?.(`data:text/javascript,${encodeURIComponent(source)}`)
}
