package main

import (
	"context"
	"errors"

	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/sidecar"
)

// exitError ends the command with a code. Without an error it ends it silently: what there was to say has been said.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// usage marks err as a mistake in flags, arguments or configuration.
func usage(err error) error { return &exitError{exitUsage, err} }

// exitCode maps an error to the command's exit code.
func exitCode(err error) int {
	var e *exitError
	var c *config.Error
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &e):
		return e.code
	case errors.As(err, &c), errors.Is(err, sidecar.ErrConfig):
		return exitUsage
	case errors.Is(err, sidecar.ErrUnreachable):
		return exitUnreachable
	case errors.Is(err, context.DeadlineExceeded):
		return exitTimeout
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	}
	return exitFailed
}
