package inspect

import (
	"bytes"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/verdict"
	"github.com/vallum/vallum/internal/vllm"
)

// part is one raw part: its header lines, and its content.
type part struct{ head, content string }

func field(name, value string) part {
	return part{`Content-Disposition: form-data; name="` + name + `"`, value}
}

func sound(content string) part {
	return part{"Content-Disposition: form-data; name=\"file\"; filename=\"speech.wav\"\r\nContent-Type: audio/wav", content}
}

func formRequest(t testing.TB, parts ...part) Request {
	t.Helper()
	var b strings.Builder
	for _, p := range parts {
		fmt.Fprintf(&b, "--XX\r\n%s\r\n\r\n%s\r\n", p.head, p.content)
	}
	b.WriteString("--XX--\r\n")
	return rawForm(t, b.String())
}

func rawForm(t testing.TB, body string) Request {
	t.Helper()
	table, ok := vllm.FieldsOf("audio.transcriptions")
	if !ok {
		t.Fatal("no table for audio.transcriptions")
	}
	return Request{
		Operation: &vllm.Operation{ID: "audio.transcriptions", Request: vllm.FormBody}, Table: table, Length: int64(len(body)),
		Body: strings.NewReader(body), ContentType: []string{"multipart/form-data; boundary=XX"}, SpoolDir: t.TempDir(),
	}
}

// parts reads a form that was built, with its part headers.
func parts(t testing.TB, b Body) (all []string) {
	t.Helper()
	body, err := io.ReadAll(b.Reader)
	if err != nil || int64(len(body)) != b.Length || b.Bytes != nil && !bytes.Equal(body, b.Bytes) {
		t.Fatalf("%d bytes, %v; the length says %d", len(body), err, b.Length)
	}
	_, params, err := mime.ParseMediaType(b.ContentType)
	if err != nil {
		t.Fatal(err)
	}
	r := multipart.NewReader(bytes.NewReader(body), params["boundary"])
	for {
		p, err := r.NextRawPart()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		content, _ := io.ReadAll(p)
		for name := range p.Header {
			if name != "Content-Disposition" && (name != "Content-Type" || p.FileName() == "") {
				t.Errorf("header %q goes up", name)
			}
		}
		all = append(all, p.FormName()+"|"+p.FileName()+"|"+string(content))
	}
}

func TestFormsAreRebuilt(t *testing.T) {
	r := formRequest(t,
		part{"content-disposition: form-data; name=\"model\"\r\nX-Any: thing", "whisper"},
		field("temperature", "0"), field("stream", "True"), field("n", "2.0"), field("prompt", ""), field("user", "u"), field("zz~", "1"), field("zz~", "2"),
		field("timestamp_granularities[]", "word"), field("timestamp_granularities[]", "segment"), field("vllm_xargs", "{ }"),
		sound("RIFF\r\n--XX-not a boundary\x00\xff"), field("max_completion_tokens", "9"))
	d := mustRead(t, r)
	defer d.Close()
	want := policy.Facts{
		Model: "whisper", Stream: true, Choices: 2, Inputs: 1, OutputCap: 9, CapField: "max_completion_tokens", BodyBytes: r.Length, HasUsage: true,
		UnknownKeys: []string{"/zz~0"}, Dropped: []string{"/user"},
	}
	if f := d.Facts(); !equalFacts(f, want) || f.Shared < 100 || f.Shared > 300 { // its text, as JSON
		t.Errorf("facts\n %+v, want\n %+v", f, want)
	}
	got := parts(t, mustRewrite(t, d, policy.Edit{Name: "model", Pointer: "/model", Value: `"large-v3\n"`}, policy.Edit{Name: "output_cap", Pointer: "/max_completion_tokens", Value: `5`}))
	if up := []string{
		"model||large-v3\n", "temperature||0", "stream||true", "n||2", "timestamp_granularities[]||word", "timestamp_granularities[]||segment",
		"max_completion_tokens||5", "file|audio.wav|RIFF\r\n--XX-not a boundary\x00\xff",
	}; !slices.Equal(got, up) {
		t.Errorf("goes up as\n %q, want\n %q", got, up)
	}
	if got := parts(t, mustRewrite(t, d)); slices.ContainsFunc(got, func(p string) bool { return strings.HasPrefix(p, "model|") }) {
		t.Errorf("the caller's model goes up: %q", got)
	}
}

func TestAttackFormsAreRefused(t *testing.T) {
	nested := part{"Content-Disposition: form-data; name=\"model\"\r\nContent-Type: multipart/mixed; boundary=YY", "--YY--"}
	for name, row := range map[string]struct {
		r      Request
		reason verdict.Reason
		param  string
	}{
		"duplicate field":        {formRequest(t, field("model", "a"), field("model", "b")), verdict.BadBody, "/model"},
		"duplicate file":         {formRequest(t, sound("a"), sound("b")), verdict.BadBody, "/file"},
		"name*":                  {formRequest(t, part{`Content-Disposition: form-data; name*=utf-8''model`, "a"}), verdict.BadBody, ""},
		"name twice":             {formRequest(t, part{`Content-Disposition: form-data; name="user"; name="model"`, "a"}), verdict.BadBody, ""},
		"name and name*":         {formRequest(t, part{`Content-Disposition: form-data; name="user"; name*0="model"`, "a"}), verdict.BadBody, ""},
		"no name":                {formRequest(t, part{`Content-Disposition: form-data`, "a"}), verdict.BadBody, ""},
		"attachment":             {formRequest(t, part{`Content-Disposition: attachment; name="model"`, "a"}), verdict.BadBody, ""},
		"no disposition":         {formRequest(t, part{`X-A: b`, "a"}), verdict.BadBody, ""},
		"open quote":             {formRequest(t, part{`Content-Disposition: form-data; name="model`, "a"}), verdict.BadBody, ""},
		"transfer encoding":      {formRequest(t, part{"Content-Disposition: form-data; name=\"model\"\r\nContent-Transfer-Encoding: base64", "YQ=="}), verdict.BadBody, ""},
		"quoted-printable":       {formRequest(t, part{"Content-Disposition: form-data; name=\"model\"\r\nContent-transfer-encoding: quoted-printable", "a"}), verdict.BadBody, ""},
		"header twice":           {formRequest(t, part{"Content-Disposition: form-data; name=\"model\"\r\nContent-Disposition: form-data; name=\"user\"", "a"}), verdict.BadBody, ""},
		"nested":                 {formRequest(t, nested), verdict.BadBody, ""},
		"charset":                {formRequest(t, part{"Content-Disposition: form-data; name=\"model\"\r\nContent-Type: text/plain; charset=utf-16", "a"}), verdict.BadBody, ""},
		"file as text":           {formRequest(t, field("file", "a")), verdict.BadBody, "/file"},
		"text as file":           {formRequest(t, part{`Content-Disposition: form-data; name="model"; filename="x"`, "a"}), verdict.BadBody, "/model"},
		"not UTF-8":              {formRequest(t, field("model", "\xff")), verdict.BadBody, "/model"},
		"coerced boolean":        {formRequest(t, field("stream", "1")), verdict.BadBody, "/stream"},
		"coerced number":         {formRequest(t, field("temperature", "0x1")), verdict.BadBody, "/temperature"},
		"NaN":                    {formRequest(t, field("temperature", "NaN")), verdict.BadBody, "/temperature"},
		"1e400":                  {formRequest(t, field("temperature", "1e400")), verdict.BadBody, "/temperature"},
		"padded integer":         {formRequest(t, field("n", "01")), verdict.BadBody, "/n"},
		"too many choices":       {formRequest(t, field("n", "9")), verdict.BadBody, "/n"},
		"arguments for plugins":  {formRequest(t, field("vllm_xargs", `{"kv_transfer_params":{}}`)), verdict.ForbiddenParameter, "/vllm_xargs"},
		"list too long":          {formRequest(t, field("timestamp_granularities[]", "word"), field("timestamp_granularities[]", "word"), field("timestamp_granularities[]", "word")), verdict.BadBody, "/timestamp_granularities[]/2"},
		"parts":                  {formRequest(t, slices.Repeat([]part{field("zz", "1")}, 65)...), verdict.BadBody, ""},
		"no end":                 {rawForm(t, "--XX\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\na"), verdict.BadBody, "/model"},
		"no form":                {rawForm(t, "{}"), verdict.BadBody, ""},
		"empty":                  {rawForm(t, ""), verdict.BadBody, ""},
		"text of two megabytes":  {formRequest(t, field("prompt", strings.Repeat("x", 2<<20))), verdict.BadBody, "/prompt"},
		"header of many headers": {formRequest(t, part{"Content-Disposition: form-data; name=\"model\"\r\nA: 1\r\nB: 1\r\nC: 1\r\nD: 1\r\nE: 1\r\nF: 1\r\nG: 1\r\nH: 1", "a"}), verdict.BadBody, ""},
	} {
		d, v := Read(row.r, Default())
		if !v.Refused() || d != nil || v.Reason() != row.reason || v.Param() != row.param {
			t.Errorf("%s: refused %v, %v at %q: %s", name, v.Refused(), v.Reason(), v.Param(), v.Message())
		}
		left, err := os.ReadDir(row.r.SpoolDir)
		if err != nil || len(left) > 0 {
			t.Errorf("%s: left behind %v, %v", name, left, err)
		}
	}
}

func TestContentTypesOfForms(t *testing.T) {
	for _, row := range []struct {
		types []string
		ok    bool
	}{
		{[]string{"multipart/form-data; boundary=XX"}, true},
		{[]string{`Multipart/Form-Data; boundary="XX"; charset=utf-8`}, true},
		{[]string{"multipart/form-data"}, false},
		{[]string{"multipart/form-data; boundary=XX; boundary=YY"}, false},
		{[]string{"multipart/mixed; boundary=XX"}, false},
		{[]string{"application/json"}, false},
		{[]string{"multipart/form-data; boundary=XX", "multipart/form-data; boundary=YY"}, false},
	} {
		r := formRequest(t, field("model", "a"))
		r.ContentType = row.types
		if _, v := Read(r, Default()); v.Refused() == row.ok {
			t.Errorf("%q: %v %s", row.types, v.Reason(), v.Message())
		}
	}
}

func TestBoundariesAreBounded(t *testing.T) {
	for _, n := range []int{70, 71} {
		boundary := strings.Repeat("X", n)
		r := rawForm(t, "--"+boundary+"\r\nContent-Disposition: form-data; name=\"n\"\r\n\r\n1\r\n--"+boundary+"--\r\n")
		r.ContentType = []string{"multipart/form-data; boundary=" + boundary}
		if _, v := Read(r, Default()); v.Refused() != (n > 70) {
			t.Errorf("a boundary of %d characters: %v", n, v.Reason())
		}
	}
}

func TestLargeFormsAreSpooledAndRemoved(t *testing.T) {
	content := strings.Repeat("0123456789abcdef", 1<<17) // 2 MiB
	r := formRequest(t, field("model", "m"), sound(content))
	d := mustRead(t, r)
	if left, _ := os.ReadDir(r.SpoolDir); len(left) > 0 && runtime.GOOS != "windows" {
		t.Errorf("a crash would leave %v behind", left)
	}
	for range 2 {
		b := mustRewrite(t, d)
		if got := parts(t, b); b.Bytes != nil || len(got) != 1 || got[0] != "file|audio.wav|"+content {
			t.Errorf("goes up as %d parts, %d bytes in memory", len(got), len(b.Bytes))
		}
	}
	for range 2 {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	left, err := os.ReadDir(r.SpoolDir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}

	cut := formRequest(t, field("model", "m"), sound(content))
	cut.Body = io.LimitReader(cut.Body, 3<<19)
	if _, v := Read(cut, Default()); v.Reason() != verdict.BadBody {
		t.Errorf("a form that ends in the spool: %v", v.Reason())
	}
	if left, _ := os.ReadDir(cut.SpoolDir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	nowhere := formRequest(t, sound(content))
	nowhere.SpoolDir = ""
	if _, v := Read(nowhere, Default()); !v.Refused() {
		t.Error("a large form without a spool is accepted")
	}
	gone := formRequest(t, sound(content))
	gone.SpoolDir += "/gone"
	if _, v := Read(gone, Default()); v.Reason() != verdict.Busy {
		t.Errorf("a spool that cannot be written: %v", v.Reason())
	}
	for _, length := range []int64{-1, r.Length} {
		big := formRequest(t, sound(content))
		big.Length = length
		lim := Default()
		lim.MaxFormBytes = 1 << 20
		if _, v := Read(big, lim); v.Reason() != verdict.BodyTooLarge {
			t.Errorf("over the cap with length %d: %v", length, v.Reason())
		}
	}
	slow := formRequest(t, sound(content))
	slow.Length, slow.Body = -1, broken{io.LimitReader(slow.Body, 3<<19), timeout{}}
	if _, v := Read(slow, Default()); v.Reason() != verdict.BodyTimeout {
		t.Errorf("a slow form: %v", v.Reason())
	}
}
