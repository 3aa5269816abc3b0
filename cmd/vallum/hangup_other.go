//go:build !unix

package main

import "context"

// untilHangup changes nothing: there is no SIGHUP here.
func untilHangup(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithCancel(ctx)
}
