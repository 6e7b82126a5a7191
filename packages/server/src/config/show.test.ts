import { expect, test } from 'vitest'
import { loadConfig } from './load.ts'
import { formatEntries, redactUrls } from './show.ts'

const builds = {
  env: {
    PIP_INDEX_URL: 'https://sam:hunter2@index.test/simple',
    PIP_EXTRA_INDEX_URL: 'https://a.test/x https://sam:hunter2@b.test/y',
    GOPROXY: 'https://hunter2@c.test,direct',
    HTTPS_PROXY: 'sam:hunter2@proxy.test:3128',
    HTTP_PROXY: 'http://sam:hunt@er2@proxy.test',
    NPM_TOKEN: 'hunter2',
    npm_config__auth: 'hunter2',
    API_KEY: 'hunter2',
    SIGNING_KEY: 'hunter2',
    DB_PASSWORD: 'hunter2',
    PLAIN: 'shown',
  },
}

test('what is shown holds no secret, and the rest is shown', () => {
  const { entries, config } = loadConfig({ env: {}, cwd: '/nonexistent', flags: { builds } })
  const text = JSON.stringify(entries) + formatEntries(entries)
  expect(text).not.toMatch(/hunter2|hunt|er2/)
  expect(text).toContain('https://***@b.test/y')
  expect(text).toContain('https://a.test/x')
  expect(text).toContain('***@proxy.test:3128')
  expect(text).toMatch(/builds\.env\.PLAIN +"shown" +flag/)
  expect(config.builds.env.NPM_TOKEN).toBe('hunter2')
})

test('URLs and addresses without credentials stay as they are', () => {
  const plain = 'https://index.test/simple localhost:5000 user@host direct,off /a/b@c'
  expect(redactUrls(plain)).toBe(plain)
})
