import { expect, test } from 'vitest'
import { parseMounts, sourcesOf } from './mounts.ts'

// As a host with a devtmpfs shows it, cut to one line of each kind.
const mountinfo = String.raw`71 47 0:39 / / rw,nosuid - overlay overlay rw
72 71 0:42 / /proc rw - proc proc rw
73 71 0:43 / /dev rw - tmpfs tmpfs rw
76 71 254:0 /usr /usr ro - ext4 /dev/vda rw
79 71 254:0 /data/with\040space /thaw/run rw - ext4 /dev/vda rw
80 73 0:6 /null /dev/null rw - devtmpfs devtmpfs rw
48 72 0:42 /bus /proc/bus ro - proc proc rw
52 72 0:46 / /proc/acpi ro - tmpfs tmpfs ro
53 72 254:0 /data/empty /proc/scsi ro - ext4 /dev/vda rw
54 72 0:6 /null /proc/keys rw - devtmpfs devtmpfs rw
`

const expected = [
  { target: '/usr', source: { kind: 'given' } },
  { target: '/thaw/run', source: { kind: 'given' } },
  { target: '/dev/null', source: { kind: 'device', path: '/dev/null' } },
  { target: '/proc/acpi', source: { kind: 'hidden' } },
  { target: '/proc/scsi', source: { kind: 'hidden' } },
  { target: '/proc/keys', source: { kind: 'device', path: '/dev/null' } },
]

test('what is of the host is told from what CRIU makes anew', () => {
  expect(parseMounts(mountinfo)).toEqual(expected)
})

test('a folder of the host that lies in memory is of the host, a tmpfs of the sandbox is not', () => {
  const lines = [
    '373 371 0:45 /data/oci/run /thaw/run rw,nosuid - tmpfs tmpfs rw,size=96m',
    '374 371 0:46 / /dev/shm rw,nosuid - tmpfs shm rw,size=64m',
    '375 371 0:47 /bus /proc/bus ro - proc proc rw',
  ]
  expect(parseMounts(lines.join('\n'))).toEqual([{ target: '/thaw/run', source: { kind: 'given' } }])
})

test('each gets a source of the new sandbox, and one that is missing is refused', () => {
  const given = new Map([
    ['/usr', '/usr'],
    ['/thaw/run', '/data/next'],
  ])
  expect([...sourcesOf(parseMounts(mountinfo), given, '/empty')]).toEqual([
    ['/usr', '/usr'],
    ['/thaw/run', '/data/next'],
    ['/dev/null', '/dev/null'],
    ['/proc/acpi', '/empty'],
    ['/proc/scsi', '/empty'],
    ['/proc/keys', '/dev/null'],
  ])
  expect(() => sourcesOf(parseMounts(mountinfo), new Map(), '/empty')).toThrow(expect.objectContaining({ code: 'snapshot_incompatible' }))
})
