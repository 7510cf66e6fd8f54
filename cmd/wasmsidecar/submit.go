package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/sidecar"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

type submission struct {
	route, id, file, server, output string
	headers                         []string
	timeout                         time.Duration
	noWait                          bool
	input                           []string
}

func newSubmit(s streams, file *string) *cobra.Command {
	var o submission
	cmd := &cobra.Command{
		Use:   "submit ROUTE [INPUT]",
		Short: "Send a job and wait for its result",
		Long: `Send a job to a running sidecar's broker and wait for the result. With --config, ROUTE is a route of
that configuration and the broker is the configuration's; without it, ROUTE is a module that
wasmsidecar run serves, at the NATS server named by --server. The input is the argument, the
file named by --file, or stdin.

With --id, a result that is there already under that id is printed, and the job is not run again
while its outcome is remembered.

The result goes to stdout. Exits 0 when the job went well, 1 when it failed (its problem goes
to stderr), 3 when the broker does not answer, 4 when no result came in time.`,
		Example: `  wasmsidecar submit upper hello
  wasmsidecar submit --config kafka.yaml jobs --file order.json -H 'Wasm-Module: adder'
  echo hello | wasmsidecar submit upper --no-wait`,
		Args: between(1, 2, "ROUTE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if *file != "" && cmd.Flags().Changed("server") {
				return usage(errors.New("the broker is given twice: by --config and by --server"))
			}
			o.route, o.input = args[0], args[1:]
			return submit(cmd.Context(), s, *file, o)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.file, "file", "f", "", "read the input from this `file`; - for stdin")
	f.StringVar(&o.id, "id", "", "the job's `id`; a random one unless given")
	f.StringArrayVarP(&o.headers, "header", "H", nil, "a `'Name: value'` of the job; may be repeated")
	f.DurationVarP(&o.timeout, "timeout", "t", 30*time.Second, "how long to wait for the result")
	f.BoolVar(&o.noWait, "no-wait", false, "print the job's id and do not wait")
	f.StringVar(&o.server, "server", envOr("NATS_URL", "nats://"+envOr("NATS_LISTEN", defaultListen)), "NATS server, where there is no --config; NATS_URL changes the default")
	outputFlag(cmd, &o.output)
	configFlag(cmd, file)
	return cmd
}

func submit(ctx context.Context, s streams, file string, o submission) error {
	if o.timeout <= 0 {
		return usage(fmt.Errorf("--timeout %s: want a duration above 0; use --no-wait not to wait", o.timeout))
	}
	cfg, route, err := o.target(file)
	if err != nil {
		return usage(err)
	}
	msg, chosen, err := o.message(ctx, s, route)
	if err != nil {
		return err
	}
	if !o.noWait && route.To == "" {
		return usage(fmt.Errorf("route %q publishes no results (it has no \"to\"): use --no-wait", route.Name))
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	t, closeTransport, err := sidecar.Dial(ctx, cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer closeTransport()
	if err := t.Ping(ctx); err != nil {
		return &exitError{exitUnreachable, fmt.Errorf("the broker (%s at %s) does not answer: %w; is it running?", cfg.Transport, sidecar.Address(cfg), err)}
	}
	var tail transport.Tail
	if !o.noWait {
		// An id that was given may be one that is done already. A broker that recognises the repeated result by its message id
		// shows it once only, so it is looked for from the beginning.
		if tail, err = t.Tail(ctx, route.To, chosen); err != nil {
			return refused(err, "watch for results at %q: %w; is a sidecar serving %q?", route.To, err, route.From)
		}
		defer tail.Close()
	}
	if err := t.Publisher().Publish(ctx, msg); err != nil {
		return refused(err, "submit to %q: %w; is a sidecar serving it?", route.From, err)
	}
	id := msg.Header.Get(transport.HeaderJobID)
	if o.noWait {
		return o.printID(s, id)
	}
	for {
		m, err := tail.Next(ctx)
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			return &exitError{exitTimeout, fmt.Errorf("no result for job %q at %q within %s: is a sidecar serving %q? The job stays with the broker", id, route.To, o.timeout, route.From)}
		case err != nil:
			return fmt.Errorf("wait for the result of job %q: %w", id, err)
		case m.Header.Get(transport.HeaderResultOf) == id && (file == "" || strings.HasSuffix(m.Header.Get(transport.HeaderMsgID), "/"+route.Name)):
			return printResult(s, o.output, id, m.Header.Get(transport.HeaderOK) == "true", m.Header.Get(transport.HeaderKind), m.Header, m.Body)
		}
	}
}

// refused is the error of a broker that answers and says no, or of one that does not answer.
func refused(err error, format string, args ...any) error {
	e := &exitError{exitUnreachable, fmt.Errorf(format, args...)}
	if transport.Permanent(err) {
		e.code = exitUsage
	}
	return e
}

// target is the configuration to use and the route to submit to.
func (o submission) target(file string) (*config.Config, *config.Route, error) {
	if file == "" {
		cfg := config.Default()
		cfg.Transport, cfg.Store = config.NATS, config.NATS
		cfg.NATS.URLs = []string{o.server}
		r := config.DefaultRoute()
		r.Name, r.From, r.To = o.route, "jobs."+o.route, "results."+o.route
		return cfg, r, nil
	}
	cfg, err := load(file)
	if err != nil {
		return nil, nil, err
	}
	var names []string
	for _, r := range cfg.Routes {
		if r.Name == o.route {
			return cfg, r, nil
		}
		names = append(names, r.Name)
	}
	return nil, nil, fmt.Errorf("%s has no route %q; it has %s", file, o.route, strings.Join(names, ", "))
}

// message is the job, and whether its id was chosen by the user, so that it may have been used before.
func (o submission) message(ctx context.Context, s streams, r *config.Route) (m *transport.Message, chosen bool, err error) {
	h, err := parseHeaders(o.headers)
	if err != nil {
		return nil, false, usage(err)
	}
	body, err := input(ctx, s, o.file, o.input)
	if err != nil {
		return nil, false, err
	}
	id := o.id
	if id == "" {
		id = h.Get(transport.HeaderJobID)
	}
	if chosen = id != ""; !chosen {
		id = uuid.NewString()
	}
	h.Set(transport.HeaderJobID, id)
	m = &transport.Message{Subject: r.From, Header: h, Body: body}
	if k := h.Get(transport.HeaderKey); k != "" {
		m.Key = []byte(k)
	}
	return m, chosen, nil
}

func (o submission) printID(s streams, id string) error {
	if o.output == "json" {
		return json.NewEncoder(s.out).Encode(map[string]string{"id": id})
	}
	_, err := fmt.Fprintln(s.out, id)
	return err
}

// input is the argument if there is one, else the file, else stdin. When ctx ends it stops waiting for stdin.
func input(ctx context.Context, s streams, file string, args []string) ([]byte, error) {
	switch {
	case len(args) > 0 && file != "":
		return nil, usage(errors.New("the input is given twice: as an argument and by --file"))
	case len(args) > 0:
		return []byte(args[0]), nil
	case file != "" && file != "-":
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, usage(fmt.Errorf("read the input: %w", err))
		}
		return b, nil
	}
	if isTerminal(s.in) {
		fmt.Fprintln(s.err, "wasmsidecar: reading the input from the terminal; end it with Ctrl-D")
	}
	type read struct {
		b   []byte
		err error
	}
	done := make(chan read, 1)
	go func() { // a read of a terminal cannot be broken off; the process ends soon after
		b, err := io.ReadAll(s.in)
		done <- read{b, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return nil, fmt.Errorf("read the input from stdin: %w", r.err)
		}
		return r.b, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("read the input from stdin: %w", ctx.Err())
	}
}

func parseHeaders(lines []string) (job.Header, error) {
	var h job.Header
	for _, l := range lines {
		name, value, ok := strings.Cut(l, ":")
		if name = strings.TrimSpace(name); !ok || name == "" || strings.ContainsAny(l, "\r\n") {
			return nil, fmt.Errorf("--header %q: want 'Name: value'", l)
		}
		h.Add(name, strings.TrimSpace(value))
	}
	return h, nil
}

// result is what -o json prints.
type result struct {
	ID      string              `json:"id,omitempty"`
	OK      bool                `json:"ok"`
	Kind    string              `json:"kind,omitempty"`
	Headers map[string][]string `json:"headers,omitempty"`
	Body    *string             `json:"body,omitempty"`        // where the result is text
	Base64  []byte              `json:"body_base64,omitempty"` // where it is not
}

// printResult prints a result and returns the command's verdict.
func printResult(s streams, output, id string, ok bool, kind string, h job.Header, body []byte) error {
	verdict := error(nil)
	if !ok {
		verdict = &exitError{code: exitFailed}
	}
	if output == "json" {
		r := result{ID: id, OK: ok, Kind: kind}
		for _, f := range h {
			if r.Headers == nil {
				r.Headers = map[string][]string{}
			}
			r.Headers[f.Name] = append(r.Headers[f.Name], f.Value)
		}
		if utf8.Valid(body) {
			text := string(body)
			r.Body = &text
		} else {
			r.Base64 = body
		}
		enc := json.NewEncoder(s.out)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(r); err != nil {
			return fmt.Errorf("print the result: %w", err)
		}
		return verdict
	}
	to := s.out
	if !ok {
		to = s.err
	}
	if len(body) > 0 && body[len(body)-1] != '\n' && isTerminal(to) || !ok {
		body = append(body[:len(body):len(body)], '\n')
	}
	if _, err := to.Write(body); err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	return verdict
}

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
