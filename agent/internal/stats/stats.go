// Package stats measures what the sandbox uses, as it is seen from inside.
package stats

import (
	"net/http"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"thaw/agent/internal/connect"
)

// Stats is the answer of GET /stats. Limits are 0 where there is none.
type Stats struct {
	CPUMs            int64  `json:"cpu_ms"`
	MemoryBytes      int64  `json:"memory_bytes"`
	MemoryCacheBytes int64  `json:"memory_cache_bytes"`
	MemoryLimitBytes int64  `json:"memory_limit_bytes"`
	Processes        int    `json:"processes"`
	DiskBytes        int64  `json:"disk_bytes"`
	DiskTotalBytes   int64  `json:"disk_total_bytes"`
	UptimeMs         int64  `json:"uptime_ms"`
	Source           string `json:"source"` // Where CPU and memory come from: cgroup2, cgroup1, machine or proc.
}

// metrics is envd's form.
type metrics struct {
	Timestamp   int64   `json:"ts"`
	CPUCount    int     `json:"cpu_count"`
	CPUUsedPct  float64 `json:"cpu_used_pct"`
	MemTotal    int64   `json:"mem_total"`
	MemUsed     int64   `json:"mem_used"`
	MemCache    int64   `json:"mem_cache"`
	MemTotalMiB int64   `json:"mem_total_mib"`
	MemUsedMiB  int64   `json:"mem_used_mib"`
	DiskUsed    int64   `json:"disk_used"`
	DiskTotal   int64   `json:"disk_total"`
}

// sampler turns two readings of CPU time into a share.
type sampler struct {
	mu    sync.Mutex
	at    time.Time
	cpuMs int64
	share float64
}

var started = time.Now()

// Register adds GET /stats and GET /metrics.
func Register(mux *http.ServeMux) {
	sampler := &sampler{at: started}
	system := System{Root: "/", PID: os.Getpid()}
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		connect.WriteJSON(w, http.StatusOK, read(system))
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		now := read(system)
		total := now.MemoryLimitBytes
		if total == 0 {
			total = system.memoryTotal()
		}
		const mib = 1 << 20
		connect.WriteJSON(w, http.StatusOK, metrics{
			Timestamp: time.Now().Unix(), CPUCount: runtime.NumCPU(), CPUUsedPct: sampler.sample(now.CPUMs),
			MemTotal: total, MemUsed: now.MemoryBytes, MemCache: now.MemoryCacheBytes, MemTotalMiB: total / mib, MemUsedMiB: now.MemoryBytes / mib,
			DiskUsed: now.DiskBytes, DiskTotal: now.DiskTotalBytes,
		})
	})
}

func read(system System) Stats {
	stats := system.Usage()
	stats.UptimeMs = time.Since(started).Milliseconds()
	var disk unix.Statfs_t
	if err := unix.Statfs(system.Root, &disk); err == nil {
		stats.DiskTotalBytes = int64(disk.Blocks) * int64(disk.Bsize)
		stats.DiskBytes = int64(disk.Blocks-disk.Bfree) * int64(disk.Bsize)
	}
	return stats
}

// sample is the use of all CPUs since the last call, as percent of all CPUs. Calls that follow at once get the last value.
func (s *sampler) sample(cpuMs int64) float64 {
	const shortest = 100 * time.Millisecond
	s.mu.Lock()
	defer s.mu.Unlock()
	elapsed := time.Since(s.at)
	if elapsed >= shortest {
		s.share = max(0, 100*float64(cpuMs-s.cpuMs)/float64(elapsed.Milliseconds())/float64(runtime.NumCPU()))
		s.at, s.cpuMs = time.Now(), cpuMs
	}
	return s.share
}
