package resolve

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vallum/vallum/internal/config"
	"github.com/vallum/vallum/internal/daemon/keyfile"
)

// Check says all that is wrong with the files and variables that a configuration names, as the user who asks may see them:
// what is not there or holds something else, certificates that do not fit their keys. None of it can be put in force. The
// problems have no place in the file: config.Locate gives them one. Nothing is changed or connected to.
func Check(conf *config.Config) []config.Problem {
	var list problems
	for i, l := range conf.Listen {
		if l.TLS != nil {
			path := fmt.Sprintf("listen[%d].tls", i)
			checkPair(path+".certificate", path+".key", l.TLS.Certificate, l.TLS.Key, list.say)
		}
	}
	for i, u := range conf.Upstreams {
		checkUpstream(fmt.Sprintf("upstreams[%d]", i), u, list.say)
	}
	if conf.KeysFile != "" {
		checkKeysFile(conf.KeysFile, list.say)
	}
	return list
}

// CheckMachine is Check, and says what else is wrong on the machine: certificates that have expired, directories that are
// not there, a state directory that others can use. A running gateway refuses no reload for these: a role must be
// revocable on the day after a certificate has expired.
func CheckMachine(conf *config.Config, now time.Time) []config.Problem {
	list := problems(Check(conf))
	for i, l := range conf.Listen {
		path := fmt.Sprintf("listen[%d]", i)
		checkSocket(path+".address", l.Address, list.say)
		if l.TLS != nil {
			checkExpiry(path+".tls.certificate", l.TLS.Certificate, l.TLS.Key, now, list.say)
		}
	}
	checkSocket("admin", conf.Admin, list.say)
	for i, u := range conf.Upstreams {
		if u.Certificate != "" {
			checkExpiry(fmt.Sprintf("upstreams[%d].certificate", i), u.Certificate, u.CertKey, now, list.say)
		}
	}
	if info, err := os.Stat(conf.State); conf.State != "" && err == nil {
		switch {
		case !info.IsDir():
			list.say("state", conf.State+" is no directory", "a directory of the gateway's own, which it makes itself")
		case filepath.Separator == '/' && info.Mode().Perm()&0o077 != 0:
			list.say("state", fmt.Sprintf("others can use %s: its mode is %04o", conf.State, info.Mode().Perm()), "chmod 0700 "+conf.State)
		}
	}
	return list
}

// problems gathers what is found.
type problems []config.Problem

func (p *problems) say(path, what, right string) {
	*p = append(*p, config.Problem{Path: path, What: what, Right: right})
}

// checkSocket looks for the directory of a socket that is to be made.
func checkSocket(path, address string, say func(path, what, right string)) {
	socket, ok := strings.CutPrefix(address, "unix:")
	if !ok {
		return
	}
	if info, err := os.Stat(filepath.Dir(socket)); err != nil || !info.IsDir() {
		say(path, fmt.Sprintf("there is no directory %s", filepath.Dir(socket)), "a directory that is there: the gateway makes the socket only")
	}
}

func checkUpstream(path string, u config.Upstream, say func(path, what, right string)) {
	if _, err := readKey(u); err != nil {
		key, right := ".key_file", "a file with vLLM's own key on one line, which this user can read"
		if u.KeyFile == "" {
			key, right = ".key", "a value where it points, or key_file: PATH"
		}
		say(path+key, reasonOf(err), right)
	}
	if u.Certificate != "" {
		checkPair(path+".certificate", path+".certificate_key", u.Certificate, u.CertKey, say)
	}
	u.Certificate, u.CertKey = "", "" // judged already
	if _, err := TLS(u); err != nil {
		say(path+".ca", reasonOf(err), "a file with certificates in PEM, which this user can read")
	}
}

// checkPair judges a certificate and its key: each alone, then together.
func checkPair(certPath, keyPath, certFile, keyFile string, say func(path, what, right string)) {
	certPEM, certErr := os.ReadFile(certFile)
	if certErr != nil {
		say(certPath, reasonOf(certErr), "a certificate chain in PEM, which this user can read")
	}
	keyPEM, keyErr := os.ReadFile(keyFile)
	if keyErr != nil {
		say(keyPath, reasonOf(keyErr), "a private key in PEM, which this user can read")
	}
	if certErr != nil || keyErr != nil {
		return
	}
	_, err := tls.X509KeyPair(certPEM, keyPEM)
	switch {
	case err != nil && strings.Contains(err.Error(), " key"): // "private key does not match …", "… in key input"
		say(keyPath, fmt.Sprintf("%s: %s", keyFile, strings.TrimPrefix(err.Error(), "tls: ")), "the private key of "+certFile)
	case err != nil:
		say(certPath, fmt.Sprintf("%s: %s", certFile, strings.TrimPrefix(err.Error(), "tls: ")), "a certificate chain in PEM")
	}
}

// checkExpiry judges a pair that is right otherwise.
func checkExpiry(path, certFile, keyFile string, now time.Time, say func(path, what, right string)) {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err == nil && pair.Leaf != nil && now.After(pair.Leaf.NotAfter) {
		say(path, fmt.Sprintf("%s expired at %s", certFile, pair.Leaf.NotAfter.UTC().Format(time.RFC3339)), "a renewed certificate")
	}
}

func checkKeysFile(name string, say func(path, what, right string)) {
	b, err := os.ReadFile(name)
	if err != nil {
		say("keys_file", reasonOf(err), "a file that this user can read")
		return
	}
	_, wrong := keyfile.Parse(name, b)
	for _, p := range wrong {
		say("keys_file", fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Column, p.What), p.Right)
	}
}

// reasonOf is an error without what was attempted: the problem's path says that.
func reasonOf(err error) string {
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Sprintf("%s: %v", path.Path, path.Err)
	}
	if inner := errors.Unwrap(err); inner != nil {
		return reasonOf(inner)
	}
	return strings.TrimPrefix(err.Error(), "reading a key file: ")
}
