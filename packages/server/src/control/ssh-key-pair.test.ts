import ssh2 from 'ssh2'
import { expect, test } from 'vitest'
import { makeKeyPair } from './ssh-key-pair.ts'

test('every key pair can be read, also of many', () => {
  // One of two hundred cannot, as the library makes them: so many would hold one all but surely.
  for (let made = 0; made < 1500; made++) {
    const pair = makeKeyPair('a comment')
    expect(ssh2.utils.parseKey(pair.private)).not.toBeInstanceOf(Error)
    expect(ssh2.utils.parseKey(pair.public)).not.toBeInstanceOf(Error)
  }
})
