package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vallum/vallum/internal/notrun"
	"github.com/vallum/vallum/internal/vllmtest"
)

// terminal opens a terminal of so many columns: what programs write to tty is read from screen.
func terminal(t *testing.T, columns uint16) (screen, tty *os.File) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		notrun.For(t, "there are no terminals here: %v", err)
	}
	t.Cleanup(func() { _ = screen.Close() })
	if err := unix.IoctlSetPointerInt(int(screen.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(screen.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tty.Close() })
	if err := unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: columns}); err != nil {
		t.Fatal(err)
	}
	return screen, tty
}

// Colours are for terminals that can show them and people who want them; a narrow terminal gets the narrow table.
func TestColoursAndWidthFollowTheTerminal(t *testing.T) {
	for _, row := range []struct {
		columns        uint16
		term, noColor  string
		colors, narrow bool
	}{
		{120, "xterm-256color", "", true, false},
		{120, "xterm-256color", "1", false, false},
		{120, "dumb", "", false, false},
		{80, "xterm-256color", "", true, true},
	} {
		_, tty := terminal(t, row.columns)
		t.Setenv("TERM", row.term)
		t.Setenv("NO_COLOR", row.noColor)
		if s := (streams{out: tty}); s.colors() != row.colors || s.narrow() != row.narrow {
			t.Errorf("%+v: colours %t, narrow %t", row, s.colors(), s.narrow())
		}
	}
}

// Lines of the log are cut to a terminal, in characters, and nowhere else.
func TestLogLinesAreCutToTheTerminal(t *testing.T) {
	const line = "11-23 15:46:06  403 not_permitted  fürst  chat.create  req_4jevgi4lgwgdco5n37bsyctu"
	for _, row := range []struct {
		columns int
		want    string
		cut     bool
	}{
		{0, line, false},
		{84, line, false},
		{len([]rune(line)), line, false},
		{40, "11-23 15:46:06  403 not_permitted  fürs…", true},
	} {
		var b strings.Builder
		f := &fitted{w: &b, columns: row.columns}
		for _, piece := range []string{line[:7], line[7:] + "   \nshort", "\n"} {
			if n, err := f.Write([]byte(piece)); n != len(piece) || err != nil {
				t.Fatal(n, err)
			}
		}
		if b.String() != row.want+"\nshort\n" || f.cut != row.cut {
			t.Errorf("%d columns: %q, cut %t", row.columns, b.String(), f.cut)
		}
	}
}

// The first key is shown on a terminal, this once, and is in no file then.
func TestServeShowsTheFirstKeyOnATerminalOnce(t *testing.T) {
	fake := vllmtest.Start(t, vllmtest.Options{})
	state := filepath.Join(t.TempDir(), "state")
	for start, shows := range []bool{true, false} {
		screen, tty := terminal(t, 80)
		ctx, stop := context.WithCancel(t.Context())
		out := &syncText{}
		ended := make(chan int, 1)
		args := []string{"serve", "--upstream", fake.URL(), "--listen", "127.0.0.1:0", "--probes", "off", "--state", state}
		go func() { ended <- run(ctx, args, strings.NewReader(""), out, tty) }()
		late := time.AfterFunc(20*time.Second, func() { _ = tty.Close() }) // then Read ends
		var seen strings.Builder
		buf := make([]byte, 4<<10)
		for !strings.Contains(seen.String(), "Every request is recorded") || shows && !strings.Contains(seen.String(), "/v1/models") {
			n, err := screen.Read(buf)
			if err != nil {
				t.Fatalf("%v after %s", err, seen.String())
			}
			seen.Write(buf[:n])
		}
		if strings.Contains(seen.String(), "KEY=vlm_") != shows {
			t.Errorf("start %d shows\n%s", start+1, seen.String())
		}
		late.Stop()
		stop()
		if code := <-ended; code != exitYes {
			t.Errorf("it ends with %d", code)
		}
		if _, err := os.Stat(filepath.Join(state, "first-key")); err == nil {
			t.Error("the key that was shown is in a file, too")
		}
	}
}
