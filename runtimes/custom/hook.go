//go:build linux

package main

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"thaw/protocol"
)

// hookVariable names the path at which a web server wants to hear of snapshots. Without one, it is not snapshotted.
const hookVariable = "THAW_HOOK_PATH"

// tokenVariable tells the program what such a request is known by: its path may be open to visitors.
const tokenVariable = "THAW_HOOK_TOKEN"

func newToken() string {
	token := make([]byte, 24)
	_, _ = rand.Read(token)
	return hex.EncodeToString(token)
}

// hook tells the program what is about to happen, or has happened: a POST with the JSON of the hook, of which anything but
// 2xx is a failure. It gets the variables that are secrets, since those of its environment cannot change; the files are written.
func (s *server) hook(hook protocol.Hook) *protocol.Failure {
	hook.Files = nil
	body, err := json.Marshal(hook)
	if err != nil {
		return hookFailure(err.Error())
	}
	// A connection that stays open would be part of the snapshot.
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	url := "http://" + net.JoinHostPort(s.addresses[0], strconv.Itoa(s.port)) + s.env[hookVariable]
	request, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return hookFailure(err.Error())
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Thaw-Hook-Token", s.env[tokenVariable])
	response, err := client.Do(request)
	if err != nil {
		return hookFailure(err.Error())
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
	if response.StatusCode/100 != 2 {
		return hookFailure(fmt.Sprintf("The program answered %d: %s", response.StatusCode, text))
	}
	return nil
}

func hookFailure(message string) *protocol.Failure {
	return &protocol.Failure{Type: "HookError", Message: message}
}
