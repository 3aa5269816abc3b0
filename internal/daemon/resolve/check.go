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

	"github.com/vallum/vallum/internal/authn"
	"github.com/vallum/vallum/internal/config"
)

// Check says all that is wrong with what a configuration names on this machine, as the user who asks may see it:
// files that are not there or hold something else, certificates that do not fit their keys or have expired, variables
// that are not set, a state directory that others can read. The problems have no place in the file: config.Locate gives
// them one. Nothing is changed or connected to.
func Check(conf *config.Config) []config.Problem {
	var list []config.Problem
	say := func(path, what, right string) {
		list = append(list, config.Problem{Path: path, What: what, Right: right})
	}
	for i, l := range conf.Listen {
		path := fmt.Sprintf("listen[%d]", i)
		checkSocket(path+".address", l.Address, say)
		if l.TLS != nil {
			checkPair(path+".tls.certificate", path+".tls.key", l.TLS.Certificate, l.TLS.Key, say)
		}
	}
	checkSocket("admin", conf.Admin, say)
	for i, u := range conf.Upstreams {
		checkUpstream(fmt.Sprintf("upstreams[%d]", i), u, say)
	}
	if conf.KeysFile != "" {
		checkKeysFile(conf.KeysFile, say)
	}
	if info, err := os.Stat(conf.State); conf.State != "" && err == nil {
		switch {
		case !info.IsDir():
			say("state", conf.State+" is no directory", "a directory of the gateway's own, which it makes itself")
		case filepath.Separator == '/' && info.Mode().Perm()&0o077 != 0:
			say("state", fmt.Sprintf("others can use %s: its mode is %04o", conf.State, info.Mode().Perm()), "chmod 0700 "+conf.State)
		}
	}
	return list
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
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	switch {
	case err != nil && strings.Contains(err.Error(), " key"): // "private key does not match …", "… in key input"
		say(keyPath, fmt.Sprintf("%s: %s", keyFile, strings.TrimPrefix(err.Error(), "tls: ")), "the private key of "+certFile)
	case err != nil:
		say(certPath, fmt.Sprintf("%s: %s", certFile, strings.TrimPrefix(err.Error(), "tls: ")), "a certificate chain in PEM")
	case pair.Leaf != nil && time.Now().After(pair.Leaf.NotAfter):
		say(certPath, fmt.Sprintf("%s expired at %s", certFile, pair.Leaf.NotAfter.UTC().Format(time.RFC3339)), "a renewed certificate")
	}
}

func checkKeysFile(name string, say func(path, what, right string)) {
	b, err := os.ReadFile(name)
	if err != nil {
		say("keys_file", reasonOf(err), "a file that this user can read")
		return
	}
	_, wrong := authn.ParseKeyFile(name, b)
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
