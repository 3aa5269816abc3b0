package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

const (
	chatPath   = "/v1/chat/completions"
	ioDeadline = 60 * time.Second
)

// conn is one keep-alive connection of the load. It reads what this bench's servers write, strictly enough to notice
// that something else came.
type conn struct {
	nc net.Conn
	br *bufio.Reader
}

func dial(address string) (*conn, error) {
	nc, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	return &conn{nc: nc, br: bufio.NewReaderSize(nc, 4<<10)}, nc.SetDeadline(time.Now().Add(ioDeadline))
}

func (c *conn) close() { c.nc.Close() }

// answered is the head of an answer, and how its body is framed.
type answered struct {
	status  int
	length  int64 // -1: in chunks
	closing bool
}

var errNotHTTP = errors.New("that is no answer of HTTP/1.1")

// readHead reads a status line and headers.
func (c *conn) readHead() (answered, error) {
	line, err := c.br.ReadSlice('\n')
	if err != nil {
		return answered{}, err
	}
	if len(line) < len("HTTP/1.1 200\r\n") || !bytes.HasPrefix(line, []byte("HTTP/1.1 ")) {
		return answered{}, fmt.Errorf("%w: %q", errNotHTTP, line)
	}
	a := answered{}
	if a.status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return answered{}, errNotHTTP
	}
	for {
		line, err := c.br.ReadSlice('\n')
		if err != nil {
			return answered{}, err
		}
		name, value, _ := bytes.Cut(bytes.TrimRight(line, "\r\n"), []byte(":"))
		value = bytes.TrimSpace(value)
		switch {
		case len(name) == 0:
			return a, nil
		case bytes.EqualFold(name, []byte("content-length")):
			if a.length, err = strconv.ParseInt(string(value), 10, 64); err != nil {
				return answered{}, errNotHTTP
			}
		case bytes.EqualFold(name, []byte("transfer-encoding")):
			a.length = -1
		case bytes.EqualFold(name, []byte("connection")):
			a.closing = bytes.EqualFold(value, []byte("close"))
		}
	}
}

// chunk reads the size line of the next chunk; 0 is the last, whose end is read as well.
func (c *conn) chunk() (int64, error) {
	line, err := c.br.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(string(bytes.TrimRight(line, "\r\n")), 16, 63)
	if err != nil {
		return 0, fmt.Errorf("%w: chunk size %q", errNotHTTP, line)
	}
	if n == 0 {
		_, err = c.br.Discard(len("\r\n"))
	}
	return n, err
}

// exchange sends a request and reads the whole answer.
func (c *conn) exchange(request []byte) (answered, error) {
	if _, err := c.nc.Write(request); err != nil {
		return answered{}, err
	}
	return c.receive()
}

func (c *conn) receive() (answered, error) {
	a, err := c.readHead()
	if err != nil {
		return a, err
	}
	if a.length >= 0 {
		_, err = c.br.Discard(int(a.length))
		return a, err
	}
	for {
		n, err := c.chunk()
		if n == 0 || err != nil {
			return a, err
		}
		if _, err := c.br.Discard(int(n) + len("\r\n")); err != nil {
			return a, err
		}
	}
}

// events reads the body of a stream and calls seen with how many events each piece that arrived completed, until the
// stream ends or seen says no.
func (c *conn) events(seen func(int) bool) error {
	newline := false
	buf := make([]byte, 2<<10)
	for {
		n, err := c.chunk()
		if n == 0 || err != nil {
			return err
		}
		for n > 0 {
			m, err := c.br.Read(buf[:min(n, int64(len(buf)))])
			if err != nil {
				return err
			}
			n -= int64(m)
			complete := 0
			for _, b := range buf[:m] {
				if b == '\n' && newline {
					complete++
				}
				newline = b == '\n'
			}
			if complete > 0 && !seen(complete) {
				return nil
			}
		}
		if _, err := io.CopyN(io.Discard, c.br, int64(len("\r\n"))); err != nil {
			return err
		}
	}
}

// request writes a POST as the OpenAI client for Python sends it.
func request(t *target, path, key, framing, body string) []byte {
	credential := ""
	if key != "" {
		credential = "Authorization: Bearer " + key + "\r\n"
	}
	return []byte("POST " + path + " HTTP/1.1\r\nHost: " + t.address + "\r\n" +
		"Accept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\nAccept: application/json\r\nContent-Type: application/json\r\n" +
		"User-Agent: OpenAI/Python 3.54.0\r\nX-Stainless-Lang: python\r\nX-Stainless-Package-Version: 3.54.0\r\nX-Stainless-OS: Linux\r\n" +
		"X-Stainless-Arch: x64\r\nX-Stainless-Runtime: CPython\r\nX-Stainless-Runtime-Version: 3.11.7\r\nX-Stainless-Async: false\r\n" +
		"X-Stainless-Retry-Count: 0\r\nX-Stainless-Read-Timeout: 600\r\n" + credential + framing + "\r\n" + body)
}

func post(t *target, path, key, body string) []byte {
	return request(t, path, key, fmt.Sprintf("Content-Length: %d\r\n", len(body)), body)
}

// question is a chat of exactly size bytes: a system text and a question, as small chats are.
func question(size int) string {
	const before = `{"messages":[{"role":"system","content":"You are a helpful assistant that answers briefly and in plain words."},{"role":"user","content":"`
	const after = `"}],"model":"` + model + `","max_tokens":128,"temperature":0.7,"top_p":0.95}`
	return before + filler(size-len(before)-len(after)) + after
}

// filler is n bytes of text with what makes JSON work: escapes now and then, and letters beyond ASCII.
func filler(n int) string {
	const text = `What does the gate do when a key is \"expired\" and nobody renews it?\nThe log says: \"no_credential\", 401, and größer is a word — to some. `
	s := strings.Repeat(text, max(0, n)/len(text))
	return s + strings.Repeat("x", max(0, n-len(s)))
}

// conversation is a chat of exactly size bytes, of many turns, with tools: what agents send.
func conversation(size int) string {
	var b strings.Builder
	b.WriteString(`{"model":"` + model + `","max_tokens":128,"temperature":0.7,"tools":[`)
	for i := range 8 {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"type":"function","function":{"name":"tool_%d","description":"%s","parameters":{"type":"object","properties":{"path":{"type":"string","description":"Where to look."},"limit":{"type":"integer","minimum":1,"maximum":2000},"recursive":{"type":"boolean"}},"required":["path"]}}}`, i, filler(200))
	}
	b.WriteString(`],"messages":[{"role":"system","content":"You are an agent."}`)
	const after = `]}`
	for i := 0; ; i++ {
		turn := fmt.Sprintf(`,{"role":"%s","content":"%s"}`, [...]string{"user", "assistant"}[i%2], filler(700+40*(i%20)))
		if b.Len()+len(turn)+len(after) > size-200 {
			const frame = `,{"role":"user","content":""}`
			fmt.Fprintf(&b, `,{"role":"user","content":"%s"}`, filler(size-b.Len()-len(after)-len(frame)))
			return b.String() + after
		}
		b.WriteString(turn)
	}
}

// streamed asks for a stream of events with a word each, the pause apart, with a prompt of so many bytes: the fake reads
// both out of these members.
func streamed(events int, pause time.Duration, prompt int) string {
	return fmt.Sprintf(`{"model":"%s","messages":[{"role":"user","content":"%s"}],"max_tokens":%d,"seed":%d,"stream":true}`,
		model, filler(prompt), events, pause.Microseconds())
}
