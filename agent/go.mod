module thaw/agent

go 1.25.0

require (
	github.com/fsnotify/fsnotify v1.9.0
	golang.org/x/sys v0.35.0
)

require (
	golang.org/x/net v0.43.0
	golang.org/x/text v0.28.0 // indirect
)
