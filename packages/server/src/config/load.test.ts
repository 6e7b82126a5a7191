import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ThawError } from '@thaw/protocol'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { type LoadOptions, loadConfig } from './load.ts'
import { isLoopback } from './schema.ts'

let cwd = ''
beforeEach(() => {
  cwd = mkdtempSync(join(tmpdir(), 'thaw-config-'))
})
afterEach(() => rmSync(cwd, { recursive: true, force: true }))

const load = (options: LoadOptions = {}) => loadConfig({ env: { HOME: '/home/sam' }, cwd, ...options })
const writeFile = (value: unknown, name = 'thaw.config.json') =>
  writeFileSync(join(cwd, name), typeof value === 'string' ? value : JSON.stringify(value))

function refusal(options: LoadOptions): ThawError {
  try {
    load(options)
  } catch (error) {
    if (error instanceof ThawError) return error
    throw error
  }
  throw new Error('the configuration was accepted')
}

const originOf = (key: string, options: LoadOptions) => load(options).entries.find((entry) => entry.key === key)

describe('layers', () => {
  test('without any setting the defaults are in force and say so', () => {
    const { config, entries } = load()
    expect(config).toMatchObject({ host: '127.0.0.1', port: 8080, driver: 'auto', limits: { queue_length: 100 } })
    expect(entries.every((entry) => entry.origin === 'default')).toBe(true)
  })

  test('file beats default, environment beats file, flag beats environment', () => {
    writeFile({ port: 1, log_level: 'warn', limits: { queue_length: 1 } })
    const env = { THAW_PORT: '2', THAW_LIMITS__QUEUE_LENGTH: '2' }
    const options = { env, flags: { port: '3', config_file: undefined, data_dir: undefined } }
    expect(load(options).config).toMatchObject({ port: 3, log_level: 'warn', limits: { queue_length: 2 } })
    expect(originOf('port', options)?.origin).toBe('flag')
    expect(originOf('limits.queue_length', options)?.origin).toBe('environment')
    expect(originOf('log_level', options)?.origin).toBe('file')
    expect(originOf('host', options)?.origin).toBe('default')
  })

  test('flags may be nested or dotted', () => {
    expect(load({ flags: { 'limits.queue_length': 7, limits: { max_instances: 8 } } }).config.limits).toMatchObject({
      queue_length: 7,
      max_instances: 8,
    })
  })

  test('the flag config_file beats THAW_CONFIG, and both must exist', () => {
    writeFile({ port: 1 }, 'a.json')
    writeFile({ port: 2 }, 'b.json')
    expect(load({ env: { THAW_CONFIG: 'a.json' } }).config.port).toBe(1)
    expect(load({ env: { THAW_CONFIG: 'a.json' }, flags: { config_file: 'b.json' } }).config.port).toBe(2)
    expect(refusal({ env: { THAW_CONFIG: 'none.json' } }).message).toContain('none.json')
  })

  test('builds.env is merged name by name and inherits where packages come from', () => {
    writeFile({ builds: { env: { GOPROXY: 'off', FILE_ONLY: '1' } } })
    const env = { GOPROXY: 'direct', HTTPS_PROXY: 'http://proxy:3128', PATH: '/bin', THAW_BUILDS__ENV__npm_config_a__b: 'x' }
    expect(load({ env }).config.builds.env).toEqual({
      GOPROXY: 'off',
      HTTPS_PROXY: 'http://proxy:3128',
      FILE_ONLY: '1',
      npm_config_a__b: 'x',
    })
  })

  test('lists and objects can be given as text', () => {
    const env = { THAW_REGISTRIES__INSECURE: 'localhost:5000, cache:5001', THAW_BUILDS__ENV: '{"A":"b"}', THAW_BUILDS__CA_FILE: '' }
    const { config } = load({ env: { ...env, SSL_CERT_FILE: '/ca.pem' } })
    expect(config.registries.insecure).toEqual(['localhost:5000', 'cache:5001'])
    expect(config.builds).toEqual({ env: { A: 'b' }, ca_file: null })
  })

  test('relative paths start at the working directory', () => {
    expect(load({ flags: { data_dir: 'data' } }).config.data_dir).toBe(join(cwd, 'data'))
  })

  test('variables that THAW_ means something else by are not keys', () => {
    expect(load({ env: { THAW_URL: 'x', THAW_API_KEY: 'x', THAW_NO_INSTALL: '1', THAW_CONFIG: '' } }).config.port).toBe(8080)
  })

  test('the result is frozen down to its leaves', () => {
    const { config } = load()
    expect(() => Object.assign(config.limits, { queue_length: 1 })).toThrow(TypeError)
    expect(() => config.registries.insecure.push('x')).toThrow(TypeError)
  })
})

describe('refusals', () => {
  test.each([
    [{ env: { THAW_PROT: '1' } }, 'THAW_PORT'],
    [{ env: { THAW_LIMITS__QUEUE_LENGHT: '1' } }, 'THAW_LIMITS__QUEUE_LENGTH'],
    [{ env: { THAW_QUEUE_LENGTH: '1' } }, 'THAW_LIMITS__QUEUE_LENGTH'],
    [{ flags: { datadir: 'x' } }, 'data_dir'],
    [{ flags: { limits: { max_instance: 1 } } }, 'limits.max_instances'],
    [{ flags: { queue_length: 1 } }, 'limits.queue_length'],
  ])('an unknown key is refused and the nearest is named: %j', (options: LoadOptions, nearest) => {
    const error = refusal(options)
    expect(error.code).toBe('config_invalid')
    expect(error.message).toContain(`did you mean ${nearest}?`)
  })

  test('an unknown key in the file names the file', () => {
    writeFile({ limits: { queue_len: 1 } })
    expect(refusal({}).message).toBe(
      `There is no configuration key limits.queue_len (from ${join(cwd, 'thaw.config.json')}); did you mean limits.queue_length?`,
    )
  })

  test.each([
    [
      { env: { THAW_PORT: 'eighty' } },
      /port \(from the environment variable THAW_PORT\) must be a whole number from 0 to 65535, not "eighty"/,
    ],
    [{ env: { THAW_PORT: '' } }, /port .* must be a whole number/],
    [{ flags: { port: -1 } }, /port \(from the flag port\).*not -1/],
    [{ flags: { port: Number.NaN } }, /must be a whole number/],
    [{ flags: { 'limits.queue_length': 1.5 } }, /limits.queue_length .* whole number/],
    [{ flags: { driver: 'kubernetes' } }, /driver .* one of auto, process, oci, docker, not "kubernetes"/],
    [{ flags: { limits: 3 } }, /limits .* must be an object/],
    [{ env: { THAW_LIMITS: '3' } }, /only a group of keys/],
    [{ env: { THAW_BUILDS__ENV: 'x' } }, /builds.env .* must be names with text values/],
    [{ flags: { data_dir: '' } }, /data_dir .* must be a path/],
    [{ flags: { registries: { insecure: ['a b'] } } }, /registries.insecure/],
    [{ flags: { config_file: 3 } }, /config_file must be a path/],
  ])('a bad value is refused with its key, origin and what is expected: %j', (options: LoadOptions, message) => {
    const error = refusal(options)
    expect(error.code).toBe('config_invalid')
    expect(error.message).toMatch(message)
  })

  test.each(['', 'a b', 'http://x', '-x', '1.2.3.4:80', 'x/y'])('the host %j is refused: it is no address', (host) => {
    expect(refusal({ flags: { host } }).message).toContain('an IP address or a host name')
  })

  test.each([
    ['127.0.0.1', true],
    ['127.8.8.8', true],
    ['::1', true],
    ['localhost', true],
    ['0.0.0.0', false],
    ['::', false],
    ['192.168.1.4', false],
    ['example.test', false],
    ['127.evil.test', false],
  ])('the host %s is taken; whether it is loopback: %s', (host, loopback) => {
    expect(isLoopback(load({ flags: { host } }).config.host)).toBe(loopback)
  })

  test.each([
    ['50', 50],
    ['0', 0],
    ['', null],
  ])('a number that may be null is read from the environment: %j', (text, value) => {
    expect(load({ env: { THAW_LIMITS__REQUESTS_PER_SECOND: text } }).config.limits.requests_per_second).toBe(value)
  })

  test.each(['{', '[]', '3', ''])('a file that is not a JSON object is refused: %j', (text) => {
    writeFile(text)
    expect(refusal({}).message).toContain('thaw.config.json')
  })

  test('__proto__ is an unknown key, and no name of a build variable', () => {
    writeFile('{"__proto__": {"port": 1}}')
    expect(refusal({}).message).toContain('__proto__')
    writeFile('{"builds": {"env": {"__proto__": "x"}}}')
    expect(refusal({}).code).toBe('config_invalid')
  })

  test('a secret does not appear in the message that refuses it', () => {
    expect(refusal({ flags: { builds: { env: { MY_TOKEN: 'hunter2\0' } } } }).message).not.toContain('hunter2')
  })
})
