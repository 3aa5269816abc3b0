// Package resolve reads what a configuration names: secrets, certificates, authorities; and says all that is wrong with it.
// It refuses a file that does not hold what it should, and never tells what a secret is.
package resolve

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vallum/vallum/internal/config"
)

// maxSecret bounds a file that holds a secret.
const maxSecret = 64 << 10

// Key reads vLLM's own key from where the configuration says that it is. "" means that there is none.
func Key(u config.Upstream) (string, error) {
	key, err := readKey(u)
	if err != nil {
		return "", fmt.Errorf("upstream %q: %w", u.Name, err)
	}
	return key, nil
}

func readKey(u config.Upstream) (string, error) {
	switch {
	case u.KeyFile != "":
		return secretFile(u.KeyFile)
	case u.Key.From == "env":
		v := os.Getenv(u.Key.Name)
		if v == "" {
			return "", fmt.Errorf("the environment has no %s", u.Key.Name)
		}
		return v, nil
	case u.Key.From == "credential":
		dir := os.Getenv("CREDENTIALS_DIRECTORY") // systemd.exec(5)
		if dir == "" {
			return "", fmt.Errorf("no CREDENTIALS_DIRECTORY: %s is for a systemd unit with LoadCredential=%s", u.Key, u.Key.Name)
		}
		if strings.ContainsAny(u.Key.Name, "/\\") {
			return "", fmt.Errorf("%q is not the name of a credential", u.Key.Name)
		}
		return secretFile(filepath.Join(dir, u.Key.Name))
	}
	return "", nil
}

// secretFile reads one line. A header could not carry more, and a newline in it would end it.
func secretFile(name string) (string, error) {
	info, err := os.Stat(name)
	if err != nil {
		return "", fmt.Errorf("reading a key file: %w", err)
	}
	if info.Size() > maxSecret {
		return "", fmt.Errorf("reading a key file: %s has %d bytes, more than a key", name, info.Size())
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return "", fmt.Errorf("reading a key file: %w", err)
	}
	key := strings.TrimSpace(string(b))
	if key == "" || strings.ContainsFunc(key, func(r rune) bool { return r < 0x21 || r > 0x7e }) {
		return "", fmt.Errorf("reading a key file: %s does not hold one key on one line", name)
	}
	return key, nil
}

// TLS is how an https upstream is trusted, and what Vallum shows it. nil for the other schemes.
func TLS(u config.Upstream) (*tls.Config, error) {
	if !strings.HasPrefix(u.URL, "https:") {
		if u.CA != "" || u.Certificate != "" {
			return nil, fmt.Errorf("upstream %q: ca and certificate are for https, and its url is %s", u.Name, u.URL)
		}
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if u.CA != "" {
		pem, err := os.ReadFile(u.CA)
		if err != nil {
			return nil, fmt.Errorf("upstream %q: reading ca: %w", u.Name, err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("upstream %q: %s holds no certificate in PEM", u.Name, u.CA)
		}
	}
	if u.Certificate != "" {
		pair, err := tls.LoadX509KeyPair(u.Certificate, u.CertKey)
		if err != nil {
			return nil, fmt.Errorf("upstream %q: loading the client certificate: %w", u.Name, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}
