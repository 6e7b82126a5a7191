import type { Readable } from 'node:stream'
import { newId, ThawError } from '@thaw/protocol'
import { pack } from 'tar-stream'
import { containerConfig } from './container.ts'
import type { Engine } from './engine.ts'
import { waitFor } from './exit.ts'
import type { EngineFacts } from './facts.ts'

const image = 'thaw/trial:1'
const trialTimeoutMs = 20_000

/** Starts a container with every limit and filter that sandboxes have, from an image with one program that ends at once. */
export async function tryContainer(engine: Engine, facts: EngineFacts): Promise<void> {
  const tar = pack()
  tar.entry({ name: 'exit', mode: 0o755 }, exitProgram())
  tar.finalize()
  const [repo, tag] = image.split(':') as [string, string]
  await engine.call('POST', '/images/create', { query: { fromSrc: '-', repo, tag }, stream: tar as unknown as Readable })
  const name = `thaw-probe-${newId('sbx')}`
  const body = containerConfig({
    spec: {
      id: 'probe',
      image: { image: { kind: 'rootfs', digest: image } },
      argv: ['/exit'],
      env: {},
      cwd: '/',
      mounts: [],
      resources: { memory_mib: 64, cpus: 1, pids: 16, tmp_mib: 1 },
      network: 'none',
      user: 'function',
      root: 'readonly',
      ready: 'started',
      start_timeout_ms: trialTimeoutMs,
    },
    image,
    labels: { 'thaw.probe': '1' },
    mounts: [],
    network: 'none',
    readonlyRoot: true,
    resolvers: [],
    devices: [],
    facts,
    ownRunDir: true,
  })
  const signal = AbortSignal.timeout(trialTimeoutMs)
  try {
    await engine.call('POST', '/containers/create', { query: { name }, body, signal })
    const ended = waitFor(engine, name, 'next-exit')
    ended.catch(() => undefined)
    await engine.call('POST', `/containers/${name}/start`, { signal })
    const code = await Promise.race([ended, new Promise<null>((resolve) => signal.addEventListener('abort', () => resolve(null)))])
    if (code !== 0) throw new ThawError('driver_failed', code === null ? 'It did not end in time.' : `It ended with code ${code}.`)
  } finally {
    await engine.call('DELETE', `/containers/${name}`, { query: { force: true, v: true } }).catch(() => undefined)
  }
}

/**
 * exit(0), as the smallest program that Linux starts: an ELF header, one program header (elf(5)), and the system call of
 * this processor. A shell would need an image.
 */
function exitProgram(): Buffer {
  const arm = process.arch === 'arm64'
  const code = arm
    ? Buffer.from('000080d2a80b80d2010000d4', 'hex') // mov x0, 0; mov x8, 93; svc 0
    : Buffer.from('31ffb83c0000000f05', 'hex') // xor edi, edi; mov eax, 60; syscall
  const headers = 64 + 56
  const base = 0x400000
  const file = Buffer.alloc(headers + code.length)
  file.write('\x7fELF\x02\x01\x01', 'latin1')
  file.writeUInt16LE(2, 16) // an executable
  file.writeUInt16LE(arm ? 183 : 62, 18)
  file.writeUInt32LE(1, 20)
  file.writeBigUInt64LE(BigInt(base + headers), 24) // starts here
  file.writeBigUInt64LE(64n, 32) // the program header follows
  file.writeUInt16LE(64, 52)
  file.writeUInt16LE(56, 54)
  file.writeUInt16LE(1, 56)
  file.writeUInt32LE(1, 64) // to be loaded
  file.writeUInt32LE(5, 68) // readable, executable
  file.writeBigUInt64LE(BigInt(base), 80)
  file.writeBigUInt64LE(BigInt(base), 88)
  file.writeBigUInt64LE(BigInt(file.length), 96)
  file.writeBigUInt64LE(BigInt(file.length), 104)
  file.writeBigUInt64LE(0x1000n, 112)
  code.copy(file, headers)
  return file
}
