package daemon

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/vallum/vallum/internal/config"
)

// lookEvery is how often the files are read although nothing told of a change: a network file system tells nothing, nor
// does the far end of a symbolic link, nor a directory that was replaced as a whole.
const lookEvery = 5 * time.Second

// digest is of what one or more files hold.
type digest [sha256.Size]byte

// digestOf reads the files. An empty name is no file; one that is absent has a digest too.
func digestOf(names ...string) digest {
	h := sha256.New()
	for _, name := range names {
		var b []byte
		err := os.ErrNotExist
		if name != "" {
			b, err = os.ReadFile(name)
		}
		fmt.Fprintf(h, "%q %d %t\n", name, len(b), err == nil)
		h.Write(b)
	}
	return digest(h.Sum(nil))
}

// trustOf is a digest of the files that resolve.TLS reads.
func trustOf(u config.Upstream) digest { return digestOf(u.CA, u.Certificate, u.CertKey) }

// readFiles are the files that a reload of this configuration reads. Other files change in the same directories, a log
// beside the configuration for one: they are no reason to reload.
func (d *Daemon) readFiles(conf *config.Config) []string {
	files := []string{d.options.File, conf.KeysFile}
	for _, l := range conf.Listen {
		if l.TLS != nil {
			files = append(files, l.TLS.Certificate, l.TLS.Key)
		}
	}
	for _, u := range conf.Upstreams {
		files = append(files, u.KeyFile, u.CA, u.Certificate, u.CertKey)
	}
	slices.Sort(files)
	return slices.DeleteFunc(slices.Compact(files), func(name string) bool { return name == "" })
}

// watchedFiles tells when one of the files that a reload reads has changed. A nil *watchedFiles tells nothing.
type watchedFiles struct {
	watcher *fsnotify.Watcher // nil where there is none: then looking every lookEvery has to do
	seen    map[string]digest
}

// load reads the configuration, and notes what its files hold before anything reads them: whatever changes from then on
// is a change, although nobody watches yet.
func (d *Daemon) load() (*config.Config, error) {
	before := digestOf(d.options.File)
	conf, err := d.options.Load()
	if err != nil {
		return nil, err
	}
	d.files = &watchedFiles{}
	d.files.changed(d.readFiles(conf))
	if d.options.File != "" {
		d.files.seen[d.options.File] = before
	}
	return conf, nil
}

// watchFiles watches the files' directories: editors write a new file in the place of the old one, and Kubernetes swaps
// a symbolic link beside them. What changed before is seen at once.
func (d *Daemon) watchFiles(ctx context.Context) *watchedFiles {
	if d.options.File == "" {
		return nil
	}
	w := d.files
	var err error
	if w.watcher, err = fsnotify.NewWatcher(); err == nil {
		err = w.follow(d.readFiles(d.current.Load().conf))
	}
	if err != nil {
		d.log.Warn("changed files are seen late; send SIGHUP after a change", "after", lookEvery, "error", err)
	}
	d.reloadChanged(ctx, w)
	return w
}

// follow watches the directories of the files, and those that links of theirs lead to.
func (w *watchedFiles) follow(files []string) error {
	if w.watcher == nil {
		return nil
	}
	var errs []error
	for _, name := range files {
		dirs := []string{filepath.Dir(name)}
		if real, err := filepath.EvalSymlinks(name); err == nil {
			dirs = append(dirs, filepath.Dir(real))
		}
		for _, dir := range dirs {
			errs = append(errs, w.watcher.Add(dir))
		}
	}
	return errors.Join(errs...)
}

// changed reports whether a file holds something else than the last time. A file that was not looked at yet has not
// changed: the load that named it has read it.
func (w *watchedFiles) changed(files []string) bool {
	now, changed := make(map[string]digest, len(files)), false
	for _, name := range files {
		now[name] = digestOf(name)
		if before, known := w.seen[name]; known && before != now[name] {
			changed = true
		}
	}
	w.seen = now
	return changed
}

// reloadChanged reloads when a file has changed, and again when one changed meanwhile. The configuration may name other
// files then, which are watched from here on.
func (d *Daemon) reloadChanged(ctx context.Context, w *watchedFiles) {
	for w.changed(d.readFiles(d.current.Load().conf)) {
		_ = d.Reload(ctx) // told already
	}
	_ = w.follow(d.readFiles(d.current.Load().conf)) // what cannot be watched is looked at
}

func (w *watchedFiles) events() <-chan fsnotify.Event {
	if w == nil || w.watcher == nil {
		return nil
	}
	return w.watcher.Events
}

// failures must be read: the watcher waits for whoever reads them.
func (w *watchedFiles) failures() <-chan error {
	if w == nil || w.watcher == nil {
		return nil
	}
	return w.watcher.Errors
}

func (w *watchedFiles) close() {
	if w != nil && w.watcher != nil {
		_ = w.watcher.Close()
	}
}
