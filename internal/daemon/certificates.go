package daemon

import (
	"crypto/tls"
	"fmt"
	"sync"

	"github.com/vallum/vallum/internal/config"
)

// certificates are the listeners' certificates, by the name of their file.
type certificates struct {
	mu   sync.Mutex
	file map[string]*tls.Certificate
}

func (c *certificates) load(conf *config.Config) error {
	file := map[string]*tls.Certificate{}
	for _, l := range conf.Listen {
		if l.TLS == nil {
			continue
		}
		pair, err := tls.LoadX509KeyPair(l.TLS.Certificate, l.TLS.Key)
		if err != nil {
			return fmt.Errorf("listener %s: loading its certificate: %w", l.Address, err)
		}
		file[l.TLS.Certificate] = &pair
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.file = file
	return nil
}

func (c *certificates) of(file string) *tls.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.file[file]
}
