package stats

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"thaw/agent/internal/process"
)

// System is where the readings come from; tests give another root.
type System struct {
	Root string
	PID  int
}

// clockTicks is USER_HZ, which is 100 on every architecture that we build for.
const clockTicks = 100

// Numbers of the initial namespaces, fixed in the kernel (include/linux/proc_ns.h).
const (
	initialCgroupNamespace = 0xEFFFFFFB
	initialPidNamespace    = 0xEFFFFFFC
)

// Usage prefers the control group of the sandbox. Where there is none, a machine of its own is read as a whole, and on a
// shared one the processes below the agent are added up.
func (s System) Usage() Stats {
	var stats Stats
	switch {
	case s.PID == 1 && s.inode("proc/self/ns/pid") == initialPidNamespace:
		s.machine(&stats)
	case s.cgroup2(&stats), s.cgroup1(&stats):
	default:
		s.descendants(&stats)
	}
	if stats.Processes == 0 {
		stats.Processes = len(process.Descendants(s.PID)) + 1
	}
	return stats
}

func (s System) inode(path string) uint64 {
	var stat syscall.Stat_t
	if err := syscall.Stat(filepath.Join(s.Root, path), &stat); err != nil {
		return 0
	}
	return stat.Ino
}

// groupPath is this process's path in a hierarchy of /proc/self/cgroup. The root of all groups is no sandbox.
func (s System) groupPath(controller string) (string, bool) {
	for _, line := range strings.Split(s.text("proc/self/cgroup"), "\n") {
		fields := strings.SplitN(line, ":", 3)
		if len(fields) != 3 {
			continue
		}
		for _, name := range strings.Split(fields[1], ",") {
			if name == controller {
				return fields[2], fields[2] != "/" || s.inode("proc/self/ns/cgroup") != initialCgroupNamespace
			}
		}
	}
	return "", false
}

// inGroup finds a file of the group, or the same file where a container sees its own group as the root.
func (s System) inGroup(mount, group, file string) string {
	path := filepath.Join("sys/fs/cgroup", mount, group, file)
	if _, err := os.Stat(filepath.Join(s.Root, path)); err == nil {
		return path
	}
	return filepath.Join("sys/fs/cgroup", mount, file)
}

func (s System) cgroup2(stats *Stats) bool {
	group, ok := s.groupPath("")
	if !ok {
		return false
	}
	memory, okMemory := s.number(s.inGroup("", group, "memory.current"))
	cpu, okCPU := field(s.text(s.inGroup("", group, "cpu.stat")), "usage_usec")
	if !okMemory || !okCPU {
		return false
	}
	stats.Source, stats.CPUMs, stats.MemoryBytes = "cgroup2", cpu/1000, memory
	stats.MemoryLimitBytes, _ = s.number(s.inGroup("", group, "memory.max"))
	stats.MemoryCacheBytes, _ = field(s.text(s.inGroup("", group, "memory.stat")), "file")
	tasks, _ := s.number(s.inGroup("", group, "pids.current"))
	stats.Processes = int(tasks)
	return true
}

func (s System) cgroup1(stats *Stats) bool {
	memoryGroup, ok := s.groupPath("memory")
	cpuGroup, okCPU := s.groupPath("cpuacct")
	if !ok || !okCPU {
		return false
	}
	memory, ok := s.number(s.inGroup("memory", memoryGroup, "memory.usage_in_bytes"))
	cpu, okCPU := s.number(s.inGroup("cpuacct", cpuGroup, "cpuacct.usage"))
	if !ok || !okCPU {
		return false
	}
	stats.Source, stats.CPUMs, stats.MemoryBytes = "cgroup1", cpu/1e6, memory
	// "No limit" is a number near 2^63 there.
	if limit, ok := s.number(s.inGroup("memory", memoryGroup, "memory.limit_in_bytes")); ok && limit < 1<<60 {
		stats.MemoryLimitBytes = limit
	}
	stats.MemoryCacheBytes, _ = field(s.text(s.inGroup("memory", memoryGroup, "memory.stat")), "cache")
	if group, ok := s.groupPath("pids"); ok {
		tasks, _ := s.number(s.inGroup("pids", group, "pids.current"))
		stats.Processes = int(tasks)
	}
	return true
}

func (s System) machine(stats *Stats) {
	stats.Source = "machine"
	line, _, _ := strings.Cut(s.text("proc/stat"), "\n")
	fields := strings.Fields(line)
	// user, nice, system, idle, iowait, irq, softirq: all but the two in which nothing ran.
	for _, i := range []int{1, 2, 3, 6, 7} {
		if i < len(fields) {
			ticks, _ := strconv.ParseInt(fields[i], 10, 64)
			stats.CPUMs += ticks * 1000 / clockTicks
		}
	}
	memory := s.text("proc/meminfo")
	total, _ := field(memory, "MemTotal:")
	available, _ := field(memory, "MemAvailable:")
	cached, _ := field(memory, "Cached:")
	stats.MemoryBytes, stats.MemoryCacheBytes, stats.MemoryLimitBytes = (total-available)<<10, cached<<10, total<<10
}

func (s System) descendants(stats *Stats) {
	stats.Source = "proc"
	pids := append(process.Descendants(s.PID), s.PID)
	for _, pid := range pids {
		text := s.text("proc/" + strconv.Itoa(pid) + "/stat")
		fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
		// Counted from the third field of proc(5): utime, stime, and those of children that were waited for.
		for _, i := range []int{11, 12, 13, 14} {
			if i < len(fields) {
				ticks, _ := strconv.ParseInt(fields[i], 10, 64)
				stats.CPUMs += ticks * 1000 / clockTicks
			}
		}
		if len(fields) > 21 {
			pages, _ := strconv.ParseInt(fields[21], 10, 64)
			stats.MemoryBytes += pages * int64(os.Getpagesize())
		}
	}
	stats.Processes = len(pids)
}

func (s System) memoryTotal() int64 {
	total, _ := field(s.text("proc/meminfo"), "MemTotal:")
	return total << 10
}

func (s System) text(path string) string {
	text, _ := os.ReadFile(filepath.Join(s.Root, path))
	return string(text)
}

func (s System) number(path string) (int64, bool) {
	number, err := strconv.ParseInt(strings.TrimSpace(s.text(path)), 10, 64)
	return number, err == nil
}

// field is the number behind a name in a file with one pair a line.
func field(text, name string) (int64, bool) {
	for _, line := range strings.Split(text, "\n") {
		fields := strings.Fields(line)
		if len(fields) >= 2 && fields[0] == name {
			number, err := strconv.ParseInt(fields[1], 10, 64)
			return number, err == nil
		}
	}
	return 0, false
}
