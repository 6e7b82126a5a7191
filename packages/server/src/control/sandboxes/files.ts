import type { IncomingMessage } from 'node:http'
import type { Readable } from 'node:stream'
import { type FileItem, ThawError } from '@thaw/protocol'
import { type AgentClient, refusalOf } from '../../agent/agent.ts'
import { type Entry, entryAnswerSchema, listAnswerSchema, understand } from '../../agent/messages.ts'

export interface FileTransfer {
  method: 'GET' | 'HEAD' | 'PUT' | 'DELETE'
  path: string
  user?: string | undefined
  /** A folder as a tar archive, instead of a file. */
  tar: boolean
  /** Range, If-Range and the like. */
  headers: Record<string, string>
  /** Bytes to write, with their number where it is known. */
  body?: { stream: Readable; length: number | undefined } | undefined
  signal?: AbortSignal
}

/** Moves bytes into or out of a sandbox, as they come. The answer's head is that of the agent; errors are ThawErrors. */
export async function transferFile(agent: AgentClient, transfer: FileTransfer): Promise<IncomingMessage> {
  const { method, body, signal } = transfer
  const query = new URLSearchParams({ path: transfer.path, ...(transfer.user === undefined ? {} : { username: transfer.user }) })
  const path = `/files${transfer.tar ? '/tar' : ''}?${query}`
  const headers: Record<string, string> = { ...transfer.headers }
  if (body !== undefined) {
    headers['content-type'] = transfer.tar ? 'application/x-tar' : 'application/octet-stream'
    if (body.length !== undefined) headers['content-length'] = String(body.length)
  }
  const answer = await agent.open({ method, path, headers, signal, isOneWay: body !== undefined }, (request) => {
    if (body === undefined) return request.end()
    body.stream.once('error', (error) => request.destroy(error))
    body.stream.pipe(request)
  })
  if (fine.has(answer.statusCode ?? 500)) return answer
  const refusal = await refusalOf(answer, path)
  if (answer.statusCode === 416) throw new ThawError('range_not_satisfiable', 'The file does not have the bytes that were asked for.')
  throw refusal
}

/** With a file or a part of it, or because the caller has it as it is. */
const fine = new Set([200, 201, 204, 206, 304])

const types: Record<string, FileItem['type']> = {
  FILE_TYPE_FILE: 'file',
  FILE_TYPE_DIRECTORY: 'directory',
  FILE_TYPE_SYMLINK: 'symlink',
}

function item(entry: Entry): FileItem {
  return {
    name: entry.name,
    path: entry.path,
    type: entry.symlinkTarget !== undefined && entry.type === undefined ? 'symlink' : (types[entry.type ?? ''] ?? 'other'),
    // A file with holes may say that it is larger than any disk.
    size_bytes: Math.min(Number(entry.size), Number.MAX_SAFE_INTEGER),
    mode: entry.mode,
    owner: entry.owner,
    group: entry.group,
    modified_at: entry.modifiedTime ?? null,
    target: entry.symlinkTarget ?? null,
  }
}

/** For all in one folder, however full: about 400 bytes an entry. */
const listBytes = 64 * 1024 * 1024
/** What is asked about files is answered at once, unless the agent stands still. */
const answerMs = 30_000
const listMs = 60_000

export async function listFolder(agent: AgentClient, path: string, depth: number, user?: string): Promise<FileItem[]> {
  const options = { user, maxBytes: listBytes, signal: AbortSignal.timeout(listMs) }
  const answer = await agent.unary('filesystem.Filesystem/ListDir', { path, depth }, options)
  return understand(listAnswerSchema, answer).entries.map(item)
}

export async function statFile(agent: AgentClient, path: string, user?: string): Promise<FileItem> {
  return entry(agent, 'Stat', { path }, user)
}

export async function moveFile(agent: AgentClient, from: string, to: string, user?: string): Promise<FileItem> {
  return entry(agent, 'Move', { source: from, destination: to }, user)
}

export async function makeFolder(agent: AgentClient, path: string, user?: string): Promise<FileItem> {
  return entry(agent, 'MakeDir', { path }, user)
}

async function entry(agent: AgentClient, procedure: string, message: object, user: string | undefined): Promise<FileItem> {
  const answer = await agent.unary(`filesystem.Filesystem/${procedure}`, message, { user, signal: AbortSignal.timeout(answerMs) })
  return item(understand(entryAnswerSchema, answer).entry)
}
