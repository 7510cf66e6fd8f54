package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func newHealthcheck(s streams) *cobra.Command {
	var url string
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "Ask a running sidecar whether it is ready",
		Long: `Ask a running sidecar whether it is ready, for container health checks in images without a shell.
Exits 0 when it is, 1 when it says that it is not, 3 when it does not answer.`,
		Example: `  wasmsidecar healthcheck --url http://127.0.0.1:9464/readyz`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			req, err := http.NewRequestWithContext(cmd.Context(), http.MethodGet, url, nil)
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
		},
	}
	cmd.Flags().StringVar(&url, "url", "http://127.0.0.1:9464/readyz", "`address` to ask")
	return cmd
}
