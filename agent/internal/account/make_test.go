package account

import (
	"os"
	"path/filepath"
	"testing"
)

func TestAppendLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "passwd")
	for content, wanted := range map[string]string{"": "x:1\n", "a:b\n": "a:b\nx:1\n", "a:b": "a:b\nx:1\n"} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := appendLine(path, "x:1"); err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(path); string(got) != wanted {
			t.Errorf("%q became %q, not %q", content, got, wanted)
		}
	}
}

func TestMakeRefusesUnusualNames(t *testing.T) {
	for _, name := range []string{"", "a:b", "a\nb", "../x", "-x", "A"} {
		if Make(name) == nil {
			t.Errorf("%q was made", name)
		}
	}
	if err := Make("root"); err != nil {
		t.Errorf("an account that is there: %v", err)
	}
}
