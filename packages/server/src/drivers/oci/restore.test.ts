import { expect, test } from 'vitest'
import { renamedHost } from './restore.ts'

test('the image of a UTS namespace gets another node name, and keeps what CRIU knows it by', () => {
  // As CRIU 4.1 wrote it for the host name "src".
  const image = Buffer.from('1943565403324754' + '0d000000' + '0a03737263' + '1206286e6f6e6529', 'hex')
  const renamed = renamedHost(image, 'sbx-01')
  expect(renamed.toString('hex')).toBe('1943565403324754' + '10000000' + '0a067362782d3031' + '1206286e6f6e6529')
  expect(renamedHost(image, 'src')).toEqual(image)
})
