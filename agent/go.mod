module thaw/agent

go 1.25.0

require (
	github.com/fsnotify/fsnotify v1.9.0
	github.com/pkg/sftp v1.13.12
	golang.org/x/sys v0.47.0
)

require (
	github.com/kr/fs v0.1.0 // indirect
	golang.org/x/crypto v0.54.0 // indirect
)

require (
	golang.org/x/net v0.56.0
	golang.org/x/text v0.40.0 // indirect
)
