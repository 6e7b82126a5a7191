import { Bridge } from '../bridge.ts'
import { insidePaths } from '../driver.ts'
import type { Engine } from './engine.ts'
import { bridgeDir } from './mounts.ts'
import { ExecStream } from './streams.ts'

/** The way into a container through an exec of its engine. */
export function openBridge(engine: Engine, container: string): Bridge {
  return new Bridge(async () => {
    const { Id } = await engine.call<{ Id: string }>('POST', `/containers/${container}/exec`, {
      body: {
        AttachStdin: true,
        AttachStdout: true,
        AttachStderr: true,
        Tty: false,
        Cmd: [`${bridgeDir}/thaw-agent`, 'bridge', '--socket', insidePaths.agentSocket],
      },
    })
    return new ExecStream(await engine.hijack(`/exec/${Id}/start`, { body: { Detach: false, Tty: false } }))
  })
}
