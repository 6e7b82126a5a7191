import { openStore } from './open.ts'
import { functionRow, invocationRow } from './rows.fixture.ts'

/** A process to be killed: writes functions and records for ever, and prints what was acknowledged. */
const [dataDir = '', round = '0'] = process.argv.slice(2)
const store = await openStore({ dataDir, log: { info() {}, warn() {} } })
for (let index = 0; ; index++) {
  const row = functionRow(`fn-${round}-${index}`)
  await store.functions.create(row)
  const record = invocationRow()
  store.records.invocation(record)
  await store.records.flush()
  // Synchronous, so that the line is out before anything else happens.
  process.stdout.write(`${row.name} ${record.id}\n`)
}
