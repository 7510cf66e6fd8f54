package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/store/natskv"
	"github.com/wasmsidecar/wasmsidecar/pkg/store/rediskv"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// Remove deletes from the servers everything that a sidecar with this configuration has made: the subjects of its routes with what is in
// them, what is kept for its group, its state. It is for configurations that were made for a measurement, with a group and
// a prefix of their own. An embedded server is reached where it listens.
func Remove(ctx context.Context, cfg *config.Config, log *slog.Logger) error {
	own, err := asClient(cfg)
	if err != nil {
		return err
	}
	c, err := connect(ctx, own, log)
	if err != nil {
		return configError{err}
	}
	defer c.close(log)
	m, ok := c.transport.(transport.Measured)
	if !ok {
		return fmt.Errorf("remove what is at transport %s: %w", cfg.Transport, transport.ErrUnsupported)
	}
	s := subjects(cfg)
	errs := []error{m.Remove(ctx, append(s.Sources, s.Sinks...)...)}
	switch own.Store {
	case config.Redis:
		client, err := c.redisClient()
		if err == nil {
			err = rediskv.Remove(ctx, client, own.Redis.Prefix)
		}
		errs = append(errs, err)
	case config.NATS:
		nc, err := c.natsConn(ctx)
		if err == nil {
			err = natskv.Remove(ctx, nc, stateStream(own.NATS.Group))
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
