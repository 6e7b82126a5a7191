import ssh2 from 'ssh2'

/**
 * A new ed25519 key pair in the format of OpenSSH. One of some two hundred that the library makes has a private key that
 * neither it nor OpenSSH can read (it cuts leading zeros off), so each is read back.
 */
export function makeKeyPair(comment: string): { private: string; public: string } {
  for (;;) {
    const made = ssh2.utils.generateKeyPairSync('ed25519', { comment })
    if (!(ssh2.utils.parseKey(made.private) instanceof Error) && !(ssh2.utils.parseKey(made.public) instanceof Error)) return made
  }
}
