// Runs a handler once and prints its answer: what `docker run`, `runc run` and `bwrap` start.
import { handler } from '/function/main.mjs'

process.stdout.write(`${JSON.stringify(await handler(JSON.parse(process.env.EVENT)))}\n`)
