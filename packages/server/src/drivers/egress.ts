import { existsSync, readFileSync } from 'node:fs'
import { isIPv4 } from 'node:net'

/** What network mode `egress` does not reach: this host's neighbours, cloud metadata, other sandboxes, and what is reserved. */
export const deniedRanges = [
  '0.0.0.0/8', '10.0.0.0/8', '100.64.0.0/10', '127.0.0.0/8', '169.254.0.0/16', '172.16.0.0/12',
  '192.168.0.0/16', '198.18.0.0/15', '224.0.0.0/4', '240.0.0.0/4',
] // biome-ignore format: one glance

/**
 * The packet filter of network mode `egress`, as a file for nft that replaces a table of this name. What is reached is the
 * public internet: this host, its neighbours and other sandboxes are not. DNS goes to `resolvers` and nowhere else inside
 * the denied ranges.
 *
 * @param links nft text that matches the host's ends of the links of all sandboxes, such as `"thabc*"`.
 */
export function egressFilter(table: string, links: string, resolvers: readonly string[]): string {
  const reached = resolvers.filter((address) => isIPv4(address))
  const dns = reached.length === 0 ? '' : `ip daddr { ${reached.join(', ')} } meta l4proto { tcp, udp } th dport 53 accept`
  // Added and deleted first, so that rules of a killed server are replaced; nft applies a file as one transaction.
  return `
    table inet ${table}
    delete table inet ${table}
    table inet ${table} {
      chain forward {
        type filter hook forward priority filter; policy accept;
        oifname ${links} ct state established,related accept
        oifname ${links} drop
        iifname ${links} jump egress
      }
      chain egress {
        ct state established,related accept
        ${dns}
        ip daddr { ${deniedRanges.join(', ')} } drop
        meta nfproto ipv6 drop
        fib daddr type local drop
        accept
      }
      chain input {
        type filter hook input priority filter; policy accept;
        iifname ${links} drop
      }
      chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        iifname ${links} masquerade
      }
    }`
}

/** Resolvers of this host that a sandbox can reach: a stub on loopback is replaced by what it asks. */
export function hostResolvers(): string[] {
  for (const path of ['/etc/resolv.conf', '/run/systemd/resolve/resolv.conf']) {
    if (!existsSync(path)) continue
    const found = [...readFileSync(path, 'utf8').matchAll(/^nameserver\s+(\S+)/gm)]
      .map((match) => match[1] as string)
      .filter((address) => isIPv4(address) && !address.startsWith('127.'))
    if (found.length > 0) return found
  }
  return []
}
