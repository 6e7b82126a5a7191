package account

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLookupTellsUnknownUsersAndThoseOfOthers(t *testing.T) {
	var unknown *UnknownUserError
	if _, err := Lookup("no-such-user"); !errors.As(err, &unknown) {
		t.Errorf("unknown: %v", err)
	}
	own, err := Lookup("")
	if err != nil || int(own.UID) != os.Geteuid() {
		t.Fatalf("own: %+v %v", own, err)
	}
	other := "root"
	if os.Geteuid() == 0 {
		other = "nobody"
	}
	_, err = Lookup(other)
	var foreign *ForeignUserError
	if isForeign := errors.As(err, &foreign); isForeign == (os.Geteuid() == 0) {
		t.Errorf("other: %v", err)
	}
}

func TestAsHasTheUsersPermissionsOnItsThreadAlone(t *testing.T) {
	t.Run("with ids for files", asHasPermissions)
	known := hasFileIDs
	defer func() { hasFileIDs = known }()
	hasFileIDs = func() bool { return false }
	t.Run("with effective ids", asHasPermissions)
}

func asHasPermissions(t *testing.T) {
	if os.Geteuid() != 0 {
		user := &User{Name: "root"}
		if err := As(user, func() error { return nil }); err == nil {
			t.Error("an agent that is not root acted for root")
		}
		return
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	nobody := &User{Name: "nobody", UID: 65534, GID: 65534, Groups: []uint32{65534, 4242}}
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			err := As(nobody, func() error {
				groups, _ := unix.Getgroups()
				if !slices.Equal(groups, []int{4242, 65534}) {
					t.Errorf("groups %v", groups)
				}
				_, err := os.ReadFile(secret)
				return err
			})
			if !errors.Is(err, os.ErrPermission) {
				t.Errorf("as nobody: %v", err)
			}
			if _, err := os.ReadFile(secret); err != nil {
				t.Errorf("as root again: %v", err)
			}
			if os.Geteuid() != 0 || os.Getegid() != 0 {
				t.Errorf("root again, but %d:%d", os.Geteuid(), os.Getegid())
			}
		})
	}
	all.Wait()
}
