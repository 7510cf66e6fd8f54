package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/job"
	"github.com/wasmsidecar/wasmsidecar/pkg/sidecar"
	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// selection is which dead letters are meant.
type selection struct {
	route, kind, since, output string
	limit                      int
	named                      []string // job ids and positions; none: whatever the rest says
	from                       time.Time
}

func newDLQ(s streams, file *string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dlq",
		Short: "Look at dead letters and send them on their way again",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			return usage(errors.New("what to do is missing: wasmsidecar dlq list, show or redrive"))
		},
	}
	cmd.AddCommand(newDLQList(s, file), newDLQShow(s, file), newDLQRedrive(s, file))
	return cmd
}

// flags adds those that all of dlq's commands share.
func (o *selection) flags(cmd *cobra.Command, file *string) {
	f := cmd.Flags()
	f.StringVar(&o.route, "route", "", "dead letters of this `route` only")
	f.StringVar(&o.kind, "kind", "", "dead letters of this `kind` only: failed, retry, trap, timeout, …")
	f.StringVar(&o.since, "since", "", "dead letters written since then: a `duration` or a time as in RFC 3339")
	outputFlag(cmd, &o.output)
	configFlag(cmd, file)
}

func newDLQList(s streams, file *string) *cobra.Command {
	var o selection
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List dead letters, the oldest first",
		Long: `List the dead letters of the configuration's routes, the oldest of each subject first. Nothing is
consumed. With -o json there is one object a line.`,
		Example: `  wasmsidecar dlq list --config kafka.yaml
  wasmsidecar dlq list -c kafka.yaml --route jobs --kind trap --since 24h -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.limit < 0 {
				return usage(fmt.Errorf("--limit %d: want at least 0", o.limit))
			}
			d, err := o.open(cmd.Context(), *file)
			if err != nil {
				return err
			}
			defer d.close()
			return d.list(cmd.Context(), s)
		},
	}
	o.flags(cmd, file)
	cmd.Flags().IntVar(&o.limit, "limit", 100, "print at most so many; 0: all")
	return cmd
}

func newDLQShow(s streams, file *string) *cobra.Command {
	var o selection
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "Print a dead letter whole",
		Long: `Print the dead letters of one job, or the one at a position as list prints it: headers, an empty line
and the body as it is. A body that is no text is dumped in hexadecimal on a terminal.`,
		Example: `  wasmsidecar dlq show --config kafka.yaml order-17`,
		Args:    between(1, 1, "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.named = args
			d, err := o.open(cmd.Context(), *file)
			if err != nil {
				return err
			}
			defer d.close()
			return d.show(cmd.Context(), s)
		},
	}
	o.flags(cmd, file)
	return cmd
}

// dlq is a connection to the broker that holds dead letters.
type dlq struct {
	selection
	cfg      *config.Config
	t        transport.Transport
	close    func()
	subjects []string // of dead letters, each once
}

// deadKinds are the kinds of failure that leave dead letters.
func deadKinds() []string {
	var out []string
	for _, k := range job.Kinds() {
		if k.Fate().DeadLetter {
			out = append(out, string(k))
		}
	}
	slices.Sort(out)
	return out
}

// open connects.
func (o selection) open(ctx context.Context, file string) (*dlq, error) {
	cfg, err := load(file)
	if err != nil {
		return nil, err
	}
	if o.from, err = parseSince(o.since, time.Now()); err != nil {
		return nil, usage(err)
	}
	if kinds := deadKinds(); o.kind != "" && !slices.Contains(kinds, o.kind) {
		return nil, usage(fmt.Errorf("--kind %q: there are %s", o.kind, strings.Join(kinds, ", ")))
	}
	d := &dlq{selection: o, cfg: cfg}
	var names []string
	for _, r := range cfg.Routes {
		names = append(names, r.Name)
		if r.DeadLetter != "" && (o.route == "" || o.route == r.Name) && !slices.Contains(d.subjects, r.DeadLetter) {
			d.subjects = append(d.subjects, r.DeadLetter)
		}
	}
	if o.route != "" && !slices.Contains(names, o.route) {
		return nil, usage(fmt.Errorf("the configuration has no route %q; it has %s", o.route, strings.Join(names, ", ")))
	}
	if len(d.subjects) == 0 {
		return nil, usage(errors.New("the configuration has no route with dead letters"))
	}
	if d.t, d.close, err = sidecar.Dial(ctx, cfg, slog.New(slog.DiscardHandler)); err != nil {
		return nil, err
	}
	ping, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := d.t.Ping(ping); err != nil {
		d.close()
		return nil, &exitError{exitUnreachable, fmt.Errorf("the broker (%s at %s) does not answer: %w; is it running?", cfg.Transport, sidecar.Address(cfg), err)}
	}
	return d, nil
}

// parseSince reads a duration before now, or a time; "" is no time.
func parseSince(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	if at, err := time.Parse(time.RFC3339, s); err == nil {
		return at, nil
	}
	return time.Time{}, fmt.Errorf("--since %q: want a duration such as 24h or a time such as 2026-01-02T15:04:05Z", s)
}

// found is one dead letter that was selected.
type found struct {
	subject string
	stored  *transport.Stored
	letter  *transport.Letter
	problem error // it is no letter of a sidecar
}

// errEnough ends a walk early.
var errEnough = errors.New("enough")

// walk hands every selected dead letter to visit.
func (d *dlq) walk(ctx context.Context, visit func(found) error) error {
	for _, subject := range d.subjects {
		b, err := d.t.Browse(ctx, subject, d.from)
		if err != nil {
			return refused(err, "read the dead letters at %q: %w; has a sidecar with this configuration run?", subject, err)
		}
		for err == nil {
			var m *transport.Stored
			if m, err = b.Next(ctx); err != nil {
				break
			}
			f := found{subject: subject, stored: m}
			f.letter, f.problem = transport.ReadLetter(&m.Message)
			if d.selects(f) {
				err = visit(f)
			}
		}
		b.Close()
		if !errors.Is(err, io.EOF) {
			return err
		}
	}
	return nil
}

func (d *dlq) selects(f found) bool {
	return (d.route == "" || f.letter.Route == d.route) && (d.kind == "" || f.letter.Kind == d.kind) &&
		(len(d.named) == 0 || slices.Contains(d.named, f.letter.ID) || slices.Contains(d.named, f.stored.Position))
}

// letterJSON is what -o json prints.
type letterJSON struct {
	ID         string              `json:"id"`
	Route      string              `json:"route"`
	Kind       string              `json:"kind"`
	Error      string              `json:"error"`
	Attempts   int                 `json:"attempts"`
	Generation int                 `json:"generation,omitempty"`
	At         string              `json:"at"`
	Source     string              `json:"source,omitempty"`
	Subject    string              `json:"subject"`
	Position   string              `json:"position"`
	Size       int                 `json:"size"`
	Truncated  bool                `json:"truncated,omitempty"`
	Headers    map[string][]string `json:"headers,omitempty"`
	Body       *string             `json:"body,omitempty"`
	Base64     []byte              `json:"body_base64,omitempty"`
}

func (f found) json(whole bool) letterJSON {
	l := f.letter
	out := letterJSON{
		ID: l.ID, Route: l.Route, Kind: l.Kind, Error: l.Error, Attempts: l.Attempts, Generation: l.Generation, At: f.at(), Source: l.Source,
		Subject: f.subject, Position: f.stored.Position, Size: len(f.stored.Body), Truncated: l.Truncated,
	}
	if !whole {
		return out
	}
	out.Headers = map[string][]string{}
	for _, h := range f.stored.Header {
		out.Headers[h.Name] = append(out.Headers[h.Name], h.Value)
	}
	if utf8.Valid(f.stored.Body) {
		text := string(f.stored.Body)
		out.Body = &text
	} else {
		out.Base64 = f.stored.Body
	}
	return out
}

// at is when the job died, as the letter says or else the broker.
func (f found) at() string {
	if f.letter.At != "" || f.stored.Published.IsZero() {
		return f.letter.At
	}
	return f.stored.Published.UTC().Format("2006-01-02T15:04:05.000Z07:00")
}

// lister prints letters as a table or as lines of JSON.
type lister struct {
	json *json.Encoder
	tab  *tabwriter.Writer
}

func newLister(out io.Writer, output string) *lister {
	if output == "json" {
		enc := json.NewEncoder(out)
		enc.SetEscapeHTML(false)
		return &lister{json: enc}
	}
	return &lister{tab: tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)}
}

func (p *lister) print(n int, f found) error {
	if p.json != nil {
		return p.json.Encode(f.json(false))
	}
	if n == 0 {
		fmt.Fprintln(p.tab, "WHEN\tKIND\tATTEMPTS\tROUTE\tID\tERROR\tPOSITION")
	}
	l := f.letter
	_, err := fmt.Fprintf(p.tab, "%s\t%s\t%d\t%s\t%s\t%s\t%s\n", job.CleanText(f.at()), job.CleanText(or(l.Kind, "?")), l.Attempts,
		job.CleanText(or(l.Route, "?")), job.CleanText(or(l.ID, "?")), short(job.CleanText(l.Error), 60), f.stored.Position)
	return err
}

func (p *lister) flush() error {
	if p.tab == nil {
		return nil
	}
	return p.tab.Flush()
}

// short cuts text for a column.
func short(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func (d *dlq) list(ctx context.Context, s streams) error {
	p, n := newLister(s.out, d.output), 0
	err := d.walk(ctx, func(f found) error {
		if d.limit > 0 && n == d.limit {
			return errEnough
		}
		if err := p.print(n, f); err != nil {
			return fmt.Errorf("print the list: %w", err)
		}
		n++
		return nil
	})
	if ferr := p.flush(); err == nil {
		err = ferr
	}
	if errors.Is(err, errEnough) {
		fmt.Fprintf(s.err, "the first %d are listed; --limit 0 lists all\n", n)
		return nil
	}
	if err == nil && n == 0 {
		fmt.Fprintln(s.err, "no dead letters")
	}
	return err
}

func (d *dlq) show(ctx context.Context, s streams) error {
	n := 0
	err := d.walk(ctx, func(f found) error {
		n++
		if d.output == "json" {
			enc := json.NewEncoder(s.out)
			enc.SetEscapeHTML(false)
			return enc.Encode(f.json(true))
		}
		if n > 1 {
			fmt.Fprintln(s.out)
		}
		return f.write(s.out)
	})
	if err == nil && n == 0 {
		return fmt.Errorf("no dead letter of job %q, and none at such a position; wasmsidecar dlq list shows which there are", d.named[0])
	}
	return err
}

// write prints a letter whole.
func (f found) write(out io.Writer) error {
	fmt.Fprintf(out, "Position: %s\n", f.stored.Position)
	if len(f.stored.Key) > 0 {
		fmt.Fprintf(out, "Key: %s\n", strings.Trim(strconv.Quote(string(f.stored.Key)), `"`))
	}
	for _, h := range f.stored.Header {
		fmt.Fprintf(out, "%s: %s\n", job.CleanText(h.Name), job.CleanText(h.Value))
	}
	fmt.Fprintln(out)
	body := f.stored.Body
	if isTerminal(out) && !utf8.Valid(body) {
		body = []byte(hex.Dump(body))
	}
	if len(body) > 0 && body[len(body)-1] != '\n' && isTerminal(out) {
		body = append(body[:len(body):len(body)], '\n')
	}
	_, err := out.Write(body)
	return err
}
