package connect

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

type message struct {
	Text string `json:"text"`
}

func echo() http.Handler {
	return Unary(func(_ context.Context, _ *http.Request, req *message) (*message, error) { return req, nil })
}

func post(handler http.Handler, kind string, body io.Reader, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "/", body)
	r.Header.Set("Content-Type", kind)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	return w
}

func TestUnaryAnswersBadInputWithTheCodeOfTheProtocol(t *testing.T) {
	cases := []struct {
		name, kind, body string
		header           []string
		status           int
		code             Code
	}{
		{"fine, unknown fields included", unaryType, `{"text":"a","other":{}}`, nil, 200, ""},
		{"an empty message", unaryType, ``, nil, 200, ""},
		{"no JSON", unaryType, `{`, nil, 400, InvalidArgument},
		{"another type", unaryType, `{"text":1}`, nil, 400, InvalidArgument},
		{"another codec", "application/proto", ``, nil, 415, ""},
		{"compressed", unaryType, `{}`, []string{"Content-Encoding", "gzip"}, 501, Unimplemented},
		{"no timeout", unaryType, `{}`, []string{"Connect-Timeout-Ms", "-1"}, 400, InvalidArgument},
		{"too long a timeout", unaryType, `{}`, []string{"Connect-Timeout-Ms", "12345678901"}, 400, InvalidArgument},
		{"too large", unaryType, `{"text":"` + strings.Repeat("x", MaxMessageBytes) + `"}`, nil, 429, ResourceExhausted},
		{"too deep", unaryType, strings.Repeat("[", 100_000), nil, 400, InvalidArgument},
	}
	for _, c := range cases {
		w := post(echo(), c.kind, strings.NewReader(c.body), c.header...)
		var failure Error
		_ = json.Unmarshal(w.Body.Bytes(), &failure)
		if w.Code != c.status || failure.Code != c.code {
			t.Errorf("%s: %d %s, wanted %d %s", c.name, w.Code, failure.Code, c.status, c.code)
		}
	}
}

func TestNamesThatAreNotUTF8StayValidJSON(t *testing.T) {
	body, err := Encode(message{"a\xff\n\u2028"})
	if err != nil || !json.Valid(body) || !strings.Contains(string(body), "\uFFFD") && !strings.Contains(string(body), `\ufffd`) {
		t.Fatalf("%q %v", body, err)
	}
}

func TestReceiverRefusesFramesThatLie(t *testing.T) {
	for name, body := range map[string]string{
		"a cut header":     "\x00\x00\x00",
		"a cut body":       "\x00\x00\x00\x00\x05ab",
		"too large":        "\x00\xff\xff\xff\xff",
		"compressed":       "\x01\x00\x00\x00\x02{}",
		"cut after claims": "\x00\x00\xff\xff\xff",
	} {
		receiver := Receiver{strings.NewReader(body)}
		_, err := receiver.Next()
		var failure *Error
		if !errors.As(err, &failure) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAServerStreamEndsWithItsErrorInTheLastFrame(t *testing.T) {
	handler := ServerStream(func(_ context.Context, _ *http.Request, req *message, out *Sender) error {
		if err := out.Send(req); err != nil {
			return err
		}
		return Errorf(NotFound, "no more")
	})
	w := post(handler, streamType, strings.NewReader("\x00\x00\x00\x00\x0c{\"text\":\"a\"}"))
	wanted := []byte("\x00\x00\x00\x00\x0c{\"text\":\"a\"}\x02\x00\x00\x00\x32{\"error\":{\"code\":\"not_found\",\"message\":\"no more\"}}")
	if w.Code != 200 || !bytes.Equal(w.Body.Bytes(), wanted) {
		t.Fatalf("%d %q", w.Code, w.Body.String())
	}
	w = post(handler, streamType, strings.NewReader(""))
	if !strings.Contains(w.Body.String(), "invalid_argument") {
		t.Fatalf("an empty body: %q", w.Body.String())
	}
}
