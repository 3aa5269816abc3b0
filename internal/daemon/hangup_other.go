//go:build !unix

package daemon

import "os"

// There is no SIGHUP here: a changed file is seen by watching its directory.
func notifyHangup(chan<- os.Signal) {}
