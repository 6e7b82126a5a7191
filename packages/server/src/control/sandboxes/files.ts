import type { IncomingMessage } from 'node:http'
import type { Readable } from 'node:stream'
import { type FileItem, ThawError } from '@thaw/protocol'
import { type AgentClient, refusalOf } from '../../agent/agent.ts'

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
  const answer = await agent.open({ method, path, headers, signal }, (request) => {
    if (body === undefined) return request.end()
    body.stream.once('error', (error) => request.destroy(error))
    body.stream.pipe(request)
  })
  if ((answer.statusCode ?? 500) < 400) return answer
  const pieces: Buffer[] = []
  for await (const piece of answer as AsyncIterable<Buffer>) pieces.push(piece)
  if (answer.statusCode === 416) throw new ThawError('range_not_satisfiable', 'The file does not have the bytes that were asked for.')
  throw refusalOf(answer.statusCode ?? 500, Buffer.concat(pieces), path)
}

/** An entry as the agent words it (filesystem.EntryInfo). */
interface Entry {
  name: string
  type?: string
  path: string
  size?: string | number
  mode?: number
  permissions?: string
  owner?: string
  group?: string
  modifiedTime?: string
  symlinkTarget?: string
}

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
    size_bytes: Number(entry.size ?? 0),
    mode: entry.mode ?? 0,
    owner: entry.owner ?? '',
    group: entry.group ?? '',
    modified_at: entry.modifiedTime ?? null,
    target: entry.symlinkTarget ?? null,
  }
}

export async function listFolder(agent: AgentClient, path: string, depth: number, user?: string): Promise<FileItem[]> {
  const { entries = [] } = await agent.unary<{ entries?: Entry[] }>('filesystem.Filesystem/ListDir', { path, depth }, { user })
  return entries.map(item)
}

export async function statFile(agent: AgentClient, path: string, user?: string): Promise<FileItem> {
  return item((await agent.unary<{ entry: Entry }>('filesystem.Filesystem/Stat', { path }, { user })).entry)
}

export async function moveFile(agent: AgentClient, from: string, to: string, user?: string): Promise<FileItem> {
  return item((await agent.unary<{ entry: Entry }>('filesystem.Filesystem/Move', { source: from, destination: to }, { user })).entry)
}

export async function makeFolder(agent: AgentClient, path: string, user?: string): Promise<FileItem> {
  return item((await agent.unary<{ entry: Entry }>('filesystem.Filesystem/MakeDir', { path }, { user })).entry)
}
