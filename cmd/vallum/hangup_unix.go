//go:build unix

package main

import (
	"context"
	"os/signal"
	"syscall"
)

// untilHangup is a context that also ends when the terminal goes away. Where SIGHUP is ignored, as under nohup, it stays
// ignored: somebody asked for a process that outlives its terminal.
func untilHangup(ctx context.Context) (context.Context, context.CancelFunc) {
	if signal.Ignored(syscall.SIGHUP) {
		return context.WithCancel(ctx)
	}
	return signal.NotifyContext(ctx, syscall.SIGHUP)
}
