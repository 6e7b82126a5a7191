import type { FunctionCreate } from '@thaw/protocol'

/**
 * Where the code of a function comes from:
 *
 * - `inline`: the text of one source file, which becomes main.py, main.mjs or main.go;
 * - `dir`: a folder, packed here (Node.js only); .thawignore, node_modules, .git and the like are left out;
 * - `archive`: the bytes of a zip or tar.gz file;
 * - `image`: an OCI image that holds the code.
 */
export type CodeSource = { inline: string } | { dir: string } | { archive: Uint8Array } | { image: string }

type WireCode = FunctionCreate['code']

/** What travels: code inside the JSON, or an archive beside it, which spares the third that base64 adds. */
export async function encodeCode(
  source: CodeSource,
  signal?: AbortSignal,
): Promise<{ json: WireCode; archive?: never } | { archive: Uint8Array; json?: never }> {
  if ('inline' in source) return { json: { inline: base64(new TextEncoder().encode(source.inline)) } }
  if ('image' in source) return { json: { image: source.image } }
  if ('archive' in source) return { archive: source.archive }
  // Imported when needed: the rest of the SDK runs without a file system.
  const { packDirectory } = await import('./pack.ts')
  return { archive: (await packDirectory(source.dir, { signal })).archive }
}

/** btoa takes one character per byte, and too many arguments at once overflow the stack. */
function base64(bytes: Uint8Array): string {
  let characters = ''
  for (let at = 0; at < bytes.length; at += 8192) characters += String.fromCharCode(...bytes.subarray(at, at + 8192))
  return btoa(characters)
}
