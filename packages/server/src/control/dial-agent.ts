/** The gateway knows nothing of agents, and passes requests on by the same kind of connection. */
export { DialAgent } from '../agent/dial-agent.ts'
