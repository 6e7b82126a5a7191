//go:build linux

package main

import (
	"bufio"
	"encoding/hex"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
)

// listeningAddresses returns where the port is listened on by a process of this user, as addresses to connect to; none while
// nobody does. Other users' sockets do not count: where the network is that of the host, the port may have been taken by
// somebody else.
func listeningAddresses(port int) []string {
	var found []string
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		file, err := os.Open(table)
		if err != nil {
			continue
		}
		found = append(found, listeners(file, port, os.Getuid())...)
		file.Close()
	}
	return found
}

// listeners reads a table as of proc(5): sl, local_address, rem_address, st, queues, timers, retransmits, uid, …
func listeners(table io.Reader, port, uid int) []string {
	const listen = "0A"
	var found []string
	lines := bufio.NewScanner(table)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 8 || fields[3] != listen || fields[7] != strconv.Itoa(uid) {
			continue
		}
		address, hexPort, _ := strings.Cut(fields[1], ":")
		if number, err := strconv.ParseUint(hexPort, 16, 16); err != nil || int(number) != port {
			continue
		}
		ip := tableAddress(address)
		switch {
		case ip == nil:
			continue
		case ip.IsUnspecified() && len(ip) == net.IPv6len:
			// Usually both: which of them works depends on the machine and the program.
			found = append(found, "127.0.0.1", "::1")
		case ip.IsUnspecified():
			found = append(found, "127.0.0.1")
		default:
			found = append(found, ip.String())
		}
	}
	return found
}

// tableAddress decodes an address, which is written as 32-bit words in the byte order of the machine: little-endian on all
// that the launcher runs on.
func tableAddress(text string) net.IP {
	ip, err := hex.DecodeString(text)
	if err != nil || (len(ip) != net.IPv4len && len(ip) != net.IPv6len) {
		return nil
	}
	for word := 0; word < len(ip); word += 4 {
		ip[word], ip[word+1], ip[word+2], ip[word+3] = ip[word+3], ip[word+2], ip[word+1], ip[word]
	}
	return ip
}
