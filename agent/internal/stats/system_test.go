package stats

import (
	"os"
	"path/filepath"
	"testing"
)

func tree(t *testing.T, files map[string]string) System {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return System{Root: root, PID: os.Getpid()}
}

func TestUsageReadsTheGroupOfEitherVersion(t *testing.T) {
	v2 := map[string]string{
		"proc/self/cgroup":                 "0::/box\n",
		"sys/fs/cgroup/box/memory.current": "1000\n",
		"sys/fs/cgroup/box/memory.max":     "max\n",
		"sys/fs/cgroup/box/memory.stat":    "anon 5\nfile 300\n",
		"sys/fs/cgroup/box/cpu.stat":       "usage_usec 2500000\n",
		"sys/fs/cgroup/box/pids.current":   "4\n",
	}
	if got := tree(t, v2).Usage(); got != (Stats{CPUMs: 2500, MemoryBytes: 1000, MemoryCacheBytes: 300, Processes: 4, Source: "cgroup2"}) {
		t.Errorf("version 2: %+v", got)
	}
	// Inside a container the path of the host is not there: the root of the mount is the group.
	v1 := map[string]string{
		"proc/self/cgroup":                           "5:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n2:pids:/docker/x\n0::/\n",
		"sys/fs/cgroup/memory/memory.usage_in_bytes": "2000\n",
		"sys/fs/cgroup/memory/memory.limit_in_bytes": "4096\n",
		"sys/fs/cgroup/memory/memory.stat":           "cache 7\n",
		"sys/fs/cgroup/cpuacct/cpuacct.usage":        "3000000\n",
		"sys/fs/cgroup/pids/pids.current":            "2\n",
	}
	if got := tree(t, v1).Usage(); got != (Stats{CPUMs: 3, MemoryBytes: 2000, MemoryCacheBytes: 7, MemoryLimitBytes: 4096, Processes: 2, Source: "cgroup1"}) {
		t.Errorf("version 1: %+v", got)
	}
}

func TestUsageWithoutAGroupAddsUpProcesses(t *testing.T) {
	got := System{Root: "/", PID: os.Getpid()}
	var stats Stats
	got.descendants(&stats)
	if stats.Source != "proc" || stats.MemoryBytes == 0 || stats.Processes < 1 {
		t.Errorf("%+v", stats)
	}
}
