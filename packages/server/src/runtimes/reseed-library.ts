/**
 * A shared library of a few hundred bytes whose only content is an initializer that jumps to `RAND_poll` of the program that
 * loads it: OpenSSL then seeds its generators anew from the kernel. Written here byte by byte, because a machine that runs
 * thaw need not have a compiler. Format: System V ABI, "Object Files" and "Dynamic Linking", and the supplements for the
 * two processors (x86-64: R_X86_64_GLOB_DAT 6; AArch64: R_AARCH64_GLOB_DAT 1025).
 */
export function reseedLibrary(arch: 'x64' | 'arm64'): Buffer {
  const machine = arch === 'x64' ? 62 : 183
  const relocationType = arch === 'x64' ? 6 : 1025
  const names = Buffer.from('\0RAND_poll\0', 'latin1')
  const at = { symbols: 0x140, hash: 0x170, names: 0x188, relocations: 0x198, code: 0x1b0, dynamic: 0x1c0 }
  const dynamic: [number, number][] = [
    [12, at.code], // INIT
    [4, at.hash],
    [5, at.names],
    [6, at.symbols],
    [10, names.length],
    [11, symbolBytes],
    [7, at.relocations],
    [8, relocationBytes],
    [9, relocationBytes],
    [24, 0], // BIND_NOW
    [0, 0],
  ]
  const slot = at.dynamic + dynamic.length * 16
  const end = slot + 8
  // What the loader writes to is in pages of its own: the same bytes of the file, further up in memory.
  const address = (offset: number) => offset + pageBytes
  const file = Buffer.alloc(end)
  file.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1])
  file.writeUInt16LE(3, 16) // a shared object
  file.writeUInt16LE(machine, 18)
  file.writeUInt32LE(1, 20)
  file.writeBigUInt64LE(64n, 32)
  file.writeUInt16LE(64, 52)
  file.writeUInt16LE(56, 54)
  file.writeUInt16LE(4, 56)
  const header = (index: number, type: number, flags: number, offset: number, base: number, size: number, align: number) => {
    const start = 64 + index * 56
    file.writeUInt32LE(type, start)
    file.writeUInt32LE(flags, start + 4)
    for (const [field, value] of [offset, base, base, size, size, align].entries())
      file.writeBigUInt64LE(BigInt(value), start + 8 + field * 8)
  }
  header(0, 1, 5, 0, 0, at.dynamic, pageBytes) // read, execute
  header(1, 1, 6, at.dynamic, address(at.dynamic), end - at.dynamic, pageBytes) // read, write
  header(2, 2, 6, at.dynamic, address(at.dynamic), dynamic.length * 16, 8)
  header(3, 0x6474e551, 6, 0, 0, 0, 16) // the stack is not executable
  file.writeUInt32LE(1, at.symbols + symbolBytes) // the name of symbol 1, which is global and defined elsewhere
  file.writeUInt8(0x10, at.symbols + symbolBytes + 4)
  for (const [index, value] of [1, 2, 0, 0, 0].entries()) file.writeUInt32LE(value, at.hash + index * 4)
  names.copy(file, at.names)
  file.writeBigUInt64LE(BigInt(address(slot)), at.relocations)
  file.writeBigUInt64LE((1n << 32n) | BigInt(relocationType), at.relocations + 8)
  if (arch === 'x64') {
    file.writeUInt16LE(0x25ff, at.code) // jmp *slot(%rip)
    file.writeInt32LE(address(slot) - (at.code + 6), at.code + 2)
  } else {
    const words = (address(slot) - at.code) / 4
    file.writeUInt32LE(0x58000000 | (words << 5) | 16, at.code) // ldr x16, slot
    file.writeUInt32LE(0xd61f0200, at.code + 4) // br x16
  }
  for (const [index, [tag, value]] of dynamic.entries()) {
    file.writeBigUInt64LE(BigInt(tag), at.dynamic + index * 16)
    file.writeBigUInt64LE(BigInt(value), at.dynamic + index * 16 + 8)
  }
  return file
}

const symbolBytes = 24
const relocationBytes = 24
/** The largest pages of the two processors. */
const pageBytes = 0x10000
