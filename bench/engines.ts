import { spawn } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { checkAnswer, eventJson, type Language } from './functions.ts'
import { findProgram, programsDir, type Workbench } from './workbench.ts'

/** Runs code once in a sandbox of an engine, and gives the milliseconds until its answer was there. */
export interface Engine {
  name: string
  /** `codeDir` holds main.py or main.mjs. */
  run(language: Language, codeDir: string): Promise<number>
}

export interface DockerEngine extends Engine {
  /** Runs the docker client and gives what it printed. Images are called bench-LANGUAGE. */
  call(args: readonly string[]): Promise<string>
}

const interpreters = { python: ['python3', '/thaw/runtime/once.py'], node: ['node', '/thaw/runtime/once.mjs'] } as const
const path = 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'

/** Starts a program and waits for the first line on its stdout: what the engine does afterwards to clean up is not counted. */
async function timeToAnswer(bench: Workbench, name: string, program: string, args: readonly string[]): Promise<number> {
  bench.signal.throwIfAborted()
  const started = performance.now()
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'], signal: bench.signal })
  let answer = ''
  let said = ''
  let answered = 0
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    answer += text
    if (answered === 0 && answer.includes('\n')) answered = performance.now() - started
  })
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    said += text
  })
  await new Promise<void>((resolve, reject) => child.once('close', () => resolve()).once('error', reject))
  if (answered === 0) throw new Error(`${name} gave no answer: ${said.slice(-1000)}`)
  checkAnswer(name, answer)
  return answered
}

/** runc with the configuration that `runc spec` writes: no user namespace, no seccomp, no limits, an empty network. */
export async function runcEngine(bench: Workbench, roots: ReadonlyMap<Language, string>): Promise<Engine | null> {
  const program = findProgram('runc')
  if (program === null) {
    bench.leaveOut('runc run', 'runc is not installed')
    return null
  }
  const dir = join(bench.dir, 'runc')
  mkdirSync(dir)
  await bench.run(program, ['spec', '--bundle', dir])
  const spec = JSON.parse(readFileSync(join(dir, 'config.json'), 'utf8')) as {
    process: { terminal: boolean; args: string[]; env: string[] }
    root: { path: string; readonly: boolean }
    mounts: object[]
    linux: object
  }
  let runs = 0
  return {
    name: 'runc run',
    run(language, codeDir) {
      const id = `bench-${process.pid}-${++runs}`
      const bundle = join(dir, id)
      mkdirSync(bundle)
      const bind = (source: string, destination: string) => ({ source, destination, type: 'bind', options: ['rbind', 'ro'] })
      writeFileSync(
        join(bundle, 'config.json'),
        JSON.stringify({
          ...spec,
          process: { ...spec.process, terminal: false, args: interpreters[language], env: [path, `EVENT=${eventJson}`] },
          root: { path: roots.get(language), readonly: true },
          mounts: [...spec.mounts, bind(codeDir, '/function'), bind(programsDir, '/thaw/runtime')],
        }),
      )
      return timeToAnswer(bench, 'runc run', program, ['--root', join(dir, 'state'), 'run', '--bundle', bundle, id])
    },
  }
}

/** bubblewrap with all namespaces of its own: the least that can be called a sandbox. */
export function bwrapEngine(bench: Workbench, roots: ReadonlyMap<Language, string>): Engine | null {
  const program = findProgram('bwrap')
  if (program === null) {
    bench.leaveOut('bwrap', 'not installed (Debian package bubblewrap)')
    return null
  }
  return {
    name: 'bwrap',
    run(language, codeDir) {
      const root = roots.get(language) ?? ''
      const folders = ['usr', 'bin', 'lib', 'lib64', 'etc'].filter((name) => existsSync(join(root, name)))
      const args = folders.flatMap((name) => ['--ro-bind', join(root, name), `/${name}`])
      args.push('--ro-bind', codeDir, '/function', '--ro-bind', programsDir, '/thaw/runtime')
      args.push('--proc', '/proc', '--dev', '/dev', '--tmpfs', '/tmp', '--unshare-all', '--die-with-parent')
      args.push('--setenv', 'EVENT', eventJson, ...interpreters[language])
      return timeToAnswer(bench, 'bwrap', program, args)
    },
  }
}

let daemons = 0

/**
 * A Docker daemon of our own, with its own socket, data root and pid file, and no bridge: containers get an empty network,
 * which spares Docker the slower half of its start. Images are imported from the same files that we start from.
 */
export async function dockerEngine(bench: Workbench, roots: ReadonlyMap<Language, string>): Promise<DockerEngine | null> {
  const [daemon, client] = [findProgram('dockerd'), findProgram('docker')]
  if (daemon === null || client === null || process.getuid?.() !== 0) {
    bench.leaveOut('docker run', 'not installed (Debian package docker.io), or not root')
    return null
  }
  const dir = join(bench.dir, `docker-${++daemons}`)
  mkdirSync(dir)
  const socket = `unix://${join(dir, 'docker.sock')}`
  // What a stopped daemon leaves mounted would keep the folder from being removed; it runs after the daemon has ended.
  bench.defer(() => unmountBelow(dir))
  const group = `thaw-bench-${process.pid}-${daemons}`
  bench.defer(() => removeGroup(group))
  const child = bench.start(daemon, [
    ...['--host', socket, '--data-root', join(dir, 'data'), '--exec-root', join(dir, 'exec'), '--pidfile', join(dir, 'pid')],
    ...[
      '--bridge',
      'none',
      '--iptables=false',
      '--ip6tables=false',
      '--ip-forward=false',
      '--ip-masq=false',
      '--config-file',
      join(dir, 'none.json'),
    ],
    ...['--storage-driver', 'overlay2', '--cgroup-parent', `/${group}`],
  ])
  const call = (args: readonly string[]) => bench.run(client, ['--host', socket, ...args], { env: { ...process.env, DOCKER_CONFIG: dir } })
  writeFileSync(join(dir, 'none.json'), '{}')
  try {
    const ended = child.ended.then(() => {
      throw new Error(child.output())
    })
    ended.catch(() => undefined)
    const answers = () =>
      call(['version']).then(
        () => true,
        () => false,
      )
    await Promise.race([bench.until('the Docker daemon answers', answers), ended])
    for (const [language, root] of roots) {
      bench.say(`docker: importing the ${language} image`)
      const tar = join(dir, 'image.tar')
      await bench.run('tar', ['--create', '--file', tar, '--owner=0', '--group=0', '--numeric-owner', '--directory', root, '.'])
      await call(['import', tar, `bench-${language}`])
      await bench.run('rm', [tar])
    }
    // What was imported goes to the disk now, not while we measure.
    await bench.run('sync', [])
  } catch (error) {
    bench.signal.throwIfAborted()
    bench.leaveOut('docker run', `its daemon does not work here: ${(error as Error).message.slice(-300)}`)
    await child.stop()
    return null
  }
  return {
    name: 'docker run',
    call,
    run(language, codeDir) {
      const args = ['--host', socket, 'run', '--rm', '--network', 'none', '--env', `EVENT=${eventJson}`]
      args.push(
        '--volume',
        `${codeDir}:/function:ro`,
        '--volume',
        `${programsDir}:/thaw/runtime:ro`,
        `bench-${language}`,
        ...interpreters[language],
      )
      return timeToAnswer(bench, 'docker run', client, args)
    },
  }
}

/** The daemon leaves the control group that it made for its containers, in the one tree of v2 or in each of v1. */
function removeGroup(name: string): void {
  const root = '/sys/fs/cgroup'
  for (const folder of [root, ...readdirSync(root).map((tree) => join(root, tree))]) {
    try {
      rmdirSync(join(folder, name))
    } catch {
      // Not in this tree.
    }
  }
}

async function unmountBelow(dir: string): Promise<void> {
  const mounted = readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .map((line) => line.split(' ')[4] ?? '')
    .filter((point) => point.startsWith(`${dir}/`))
  for (const point of mounted.reverse()) {
    const child = spawn('umount', ['--lazy', point], { stdio: 'ignore' })
    await new Promise((resolve) => child.once('close', resolve).once('error', resolve))
  }
}
