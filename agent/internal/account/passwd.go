// Package account finds the users of the sandbox and acts with their permissions.
package account

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// User is an account of the sandbox.
type User struct {
	Name   string
	UID    uint32
	GID    uint32
	Groups []uint32
	Home   string
	Shell  string
}

// UnknownUserError says that a name has no account here.
type UnknownUserError struct{ Name string }

func (e *UnknownUserError) Error() string {
	return fmt.Sprintf("error looking up user '%s': user: unknown user %s", e.Name, e.Name)
}

// ForeignUserError says that the agent, which is not root, can act for its own user only.
type ForeignUserError struct{ Name, Own string }

func (e *ForeignUserError) Error() string {
	return fmt.Sprintf("user '%s' cannot be used: the agent runs as '%s' and only root can act for others", e.Name, e.Own)
}

const (
	passwdFile = "/etc/passwd"
	groupFile  = "/etc/group"
)

// Lookup finds a user by name or number. The empty name is the agent's own user.
func Lookup(name string) (*User, error) {
	own := uint32(os.Geteuid())
	var user *User
	if name == "" {
		user = byID(own)
	} else if user = find(func(u *User) bool { return u.Name == name }); user == nil {
		// 4294967295 means "unchanged" to the kernel.
		if id, err := strconv.ParseUint(name, 10, 32); err == nil && id != 1<<32-1 {
			user = byID(uint32(id))
		}
	}
	if user == nil {
		return nil, &UnknownUserError{name}
	}
	if own != 0 && user.UID != own {
		return nil, &ForeignUserError{name, byID(own).Name}
	}
	user.Groups = groupsOf(user)
	return user, nil
}

// byID falls back to an account without a name: containers often run as a number.
func byID(id uint32) *User {
	if user := find(func(u *User) bool { return u.UID == id }); user != nil {
		return user
	}
	user := &User{Name: strconv.FormatUint(uint64(id), 10), UID: id, GID: id, Home: "/", Shell: "/bin/sh"}
	if id == uint32(os.Geteuid()) {
		user.GID = uint32(os.Getegid())
		if home := os.Getenv("HOME"); strings.HasPrefix(home, "/") {
			user.Home = home
		}
	}
	if id == 0 {
		user.Name, user.Home = "root", "/root"
	}
	return user
}

func find(matches func(*User) bool) *User {
	var found *User
	eachLine(passwdFile, 7, func(fields []string) bool {
		uid, errUID := strconv.ParseUint(fields[2], 10, 32)
		gid, errGID := strconv.ParseUint(fields[3], 10, 32)
		if errUID != nil || errGID != nil {
			return true
		}
		user := &User{Name: fields[0], UID: uint32(uid), GID: uint32(gid), Home: fields[5], Shell: fields[6]}
		if !matches(user) {
			return true
		}
		if !strings.HasPrefix(user.Home, "/") {
			user.Home = "/"
		}
		if user.Shell == "" {
			user.Shell = "/bin/sh"
		}
		found = user
		return false
	})
	return found
}

func groupsOf(user *User) []uint32 {
	groups := []uint32{user.GID}
	eachLine(groupFile, 4, func(fields []string) bool {
		gid, err := strconv.ParseUint(fields[2], 10, 32)
		if err == nil && uint32(gid) != user.GID && slices.Contains(strings.Split(fields[3], ","), user.Name) {
			groups = append(groups, uint32(gid))
		}
		return true
	})
	return groups
}

// Names translates ids to names and remembers them: a listing asks for the same few thousands of times.
type Names struct{ users, groups map[uint32]string }

// User is the name of a user id, or the number as text.
func (n *Names) User(id uint32) string { return name(&n.users, passwdFile, id) }

// Group is the name of a group id, or the number as text.
func (n *Names) Group(id uint32) string { return name(&n.groups, groupFile, id) }

func name(names *map[uint32]string, file string, id uint32) string {
	if *names == nil {
		*names = map[uint32]string{}
		eachLine(file, 3, func(fields []string) bool {
			if number, err := strconv.ParseUint(fields[2], 10, 32); err == nil {
				if _, taken := (*names)[uint32(number)]; !taken {
					(*names)[uint32(number)] = fields[0]
				}
			}
			return true
		})
	}
	if text, ok := (*names)[id]; ok {
		return text
	}
	return strconv.FormatUint(uint64(id), 10)
}

// eachLine calls visit with the fields of each line that has enough of them, until it returns false.
func eachLine(path string, atLeast int, visit func([]string) bool) {
	file, err := os.Open(path)
	if err != nil {
		return
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		fields := strings.Split(lines.Text(), ":")
		if len(fields) >= atLeast && fields[0] != "" && !visit(fields) {
			return
		}
	}
}
