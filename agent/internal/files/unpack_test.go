package files

import "testing"

func TestLinksOfArchives(t *testing.T) {
	const target = "/work/target"
	for _, c := range []struct {
		name, link string
		fine       bool
	}{
		{"l", "x", true},
		{"a/l", "../x", true},
		{"a/l", "..", true},
		{"a/l", "./x/./y", true},
		{"l", "/work/target/x", true},
		{"l", "/work/target", true},
		{"l", "..", false},
		{"a/l", "../../x", false},
		{"a/l", "s/../x", false},
		{"l", "/work/target/../x", false},
		{"l", "/work/target2", false},
		{"l", "/etc", false},
		{"l", "", false},
		{"l", "a\x00b", false},
	} {
		if got := linkStaysInside(c.name, c.link, target); got != c.fine {
			t.Errorf("%q -> %q: %v", c.name, c.link, got)
		}
	}
}
