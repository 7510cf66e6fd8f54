package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func newHealthcheck(s streams) *cobra.Command {
	var url string
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "Ask a running sidecar whether it is ready",
		Long: `Ask a running sidecar whether it is ready, for container health checks in images without a shell.
Exits 0 when it is, 1 when it says that it is not, 3 when it does not answer. With --wait it is asked
again until it is ready or the time is up.`,
		Example: `  wasmsidecar healthcheck --url http://127.0.0.1:9464/readyz
  wasmsidecar healthcheck --wait 30s`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), wait)
			defer cancel()
			for {
				err := askReady(cmd.Context(), url)
				if err == nil || exitCode(err) == exitUsage {
					return err
				}
				select {
				case <-ctx.Done():
					return err
				case <-time.After(100 * time.Millisecond):
				}
			}
		},
	}
	cmd.Flags().StringVar(&url, "url", "http://"+envOr("ADMIN_LISTEN", defaultAdmin)+"/readyz", "`address` to ask")
	cmd.Flags().DurationVar(&wait, "wait", 0, "how long it may take to become ready")
	return cmd
}

// askReady asks once; its error carries the exit code.
func askReady(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return usage(fmt.Errorf("--url: %w", err))
	}
	res, err := (&http.Client{Timeout: 5 * time.Second}).Do(req)
	if err != nil {
		return &exitError{exitUnreachable, fmt.Errorf("%w; is the sidecar running, with its admin server there?", err)}
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if err != nil {
		return &exitError{exitUnreachable, fmt.Errorf("read the answer of %s: %w", url, err)}
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s says %s: %s", url, res.Status, strings.TrimSpace(string(body)))
	}
	return nil
}
