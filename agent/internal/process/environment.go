package process

import (
	"os"
	"sort"
	"strings"

	"thaw/agent/internal/connect"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment joins, later ones first: the image's variables (which are the agent's own), the user's identity, the
// sandbox's variables, the caller's.
func environment(sandbox map[string]string, spec *Spec) ([]string, error) {
	merged := map[string]string{"PATH": defaultPath}
	for _, variable := range os.Environ() {
		if name, value, ok := strings.Cut(variable, "="); ok && name != "" {
			merged[name] = value
		}
	}
	merged["HOME"], merged["USER"], merged["LOGNAME"], merged["SHELL"] = spec.User.Home, spec.User.Name, spec.User.Name, spec.User.Shell
	if spec.PTY != nil {
		merged["TERM"] = "xterm-256color"
	}
	for _, layer := range []map[string]string{sandbox, spec.Config.Envs} {
		for name, value := range layer {
			if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) {
				return nil, connect.Errorf(connect.InvalidArgument, "the environment variable %q cannot be set: names hold no '=' and nothing holds NUL", name)
			}
			merged[name] = value
		}
	}
	env := make([]string, 0, len(merged))
	for name, value := range merged {
		env = append(env, name+"="+value)
	}
	sort.Strings(env)
	return env, nil
}
