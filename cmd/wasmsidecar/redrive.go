package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/wasmsidecar/wasmsidecar/pkg/transport"
)

// redriveBatch is how many dead letters are published, and then taken away, at once.
const redriveBatch = 100

func newDLQRedrive(s streams, file *string) *cobra.Command {
	var o selection
	var all, yes, dry bool
	cmd := &cobra.Command{
		Use:   "redrive [ID...]",
		Short: "Send dead letters on their way again",
		Long: `Send jobs whose dead letters are named, by job id or position, or all that the filters leave, on their
way again. A job keeps its id and begins a new generation: it is claimed anew, its attempts count
from 1, and it gets a new result. Its dead letter is taken away once the job is with the broker; on
Kafka, which takes nothing away, a mark is written behind it. When that is interrupted the letter stays,
and another redrive sends the same message, which is recognised as a repeat.

Dead letters whose body was cut, and those that no route of the configuration takes, are left and named;
then it exits with 1.`,
		Example: `  wasmsidecar dlq redrive --config kafka.yaml order-17
  wasmsidecar dlq redrive -c kafka.yaml --all --route jobs --kind upstream --since 2h --yes`,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0 && !all:
				return usage(errors.New("which dead letters? Name their job ids or positions, or say --all"))
			case len(args) > 0 && all:
				return usage(errors.New("both --all and some dead letters are given"))
			}
			o.named = args
			d, err := o.open(cmd.Context(), *file)
			if err != nil {
				return err
			}
			defer d.close()
			r := &redrive{dlq: d, s: s, yes: yes, dry: dry}
			return r.run(cmd.Context())
		},
	}
	o.flags(cmd, file)
	f := cmd.Flags()
	f.BoolVar(&all, "all", false, "all that --route, --kind and --since leave")
	f.BoolVarP(&yes, "yes", "y", false, "do not ask")
	f.BoolVar(&dry, "dry-run", false, "list what would be sent, and send nothing")
	return cmd
}

// redrive is one run of the command.
type redrive struct {
	*dlq
	s        streams
	yes, dry bool

	chosen map[string]bool // positions
	left   []string        // what cannot be sent, and why
	sent   int
}

func (r *redrive) run(ctx context.Context) error {
	// What is there now is looked at first, and sent in a second round: what fails again meanwhile is not sent twice.
	r.chosen = map[string]bool{}
	seen := map[string]bool{}
	list := newLister(r.s.out, r.output)
	err := r.walk(ctx, func(f found) error {
		seen[f.letter.ID], seen[f.stored.Position] = true, true
		if _, err := r.moved(f); err != nil {
			r.left = append(r.left, fmt.Sprintf("%s at %s: %v", or(f.letter.ID, "a message"), f.stored.Position, err))
			return nil
		}
		r.chosen[f.stored.Position] = true
		if !r.dry {
			return nil
		}
		return list.print(len(r.chosen)-1, f)
	})
	if err == nil {
		err = list.flush()
	}
	if err != nil {
		return err
	}
	for _, name := range r.named {
		if !seen[name] {
			r.left = append(r.left, fmt.Sprintf("%s: there is no such dead letter", name))
		}
	}
	for _, l := range r.left {
		fmt.Fprintln(r.s.err, "left:", l)
	}
	n := len(r.chosen)
	switch {
	case r.dry:
		fmt.Fprintf(r.s.err, "%s would be sent on their way again\n", letters(n))
		return r.verdict()
	case n == 0:
		fmt.Fprintln(r.s.err, "no dead letter to send")
		return r.verdict()
	}
	if err := r.confirm(n); err != nil {
		return err
	}
	if err := r.send(ctx); err != nil {
		return fmt.Errorf("%w; %d of %d were sent, the others stay dead letters: run it again", err, r.sent, n)
	}
	return r.verdict()
}

func letters(n int) string {
	if n == 1 {
		return "1 dead letter"
	}
	return fmt.Sprintf("%d dead letters", n)
}

// confirm asks on a terminal.
func (r *redrive) confirm(n int) error {
	if r.yes {
		return nil
	}
	if !isTerminal(r.s.in) {
		return usage(fmt.Errorf("%s would be sent: say --yes, as nobody can be asked here", letters(n)))
	}
	fmt.Fprintf(r.s.err, "Send %s on their way again? [y/N] ", letters(n))
	answer, err := bufio.NewReader(r.s.in).ReadString('\n')
	if answer = strings.ToLower(strings.TrimSpace(answer)); err == nil && (answer == "y" || answer == "yes") {
		return nil
	}
	return &exitError{exitFailed, errors.New("nothing was sent")}
}

// send publishes what was chosen and takes its letters away, in batches.
func (r *redrive) send(ctx context.Context) error {
	var batch []found
	flush := func() error {
		err := r.batch(ctx, batch)
		batch = batch[:0]
		return err
	}
	err := r.walk(ctx, func(f found) error {
		if !r.chosen[f.stored.Position] {
			return nil
		}
		batch = append(batch, f)
		if len(batch) == redriveBatch {
			return flush()
		}
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}

// batch sends some letters of any subjects: first every job is with the broker, then the letters go.
func (r *redrive) batch(ctx context.Context, fs []found) error {
	if len(fs) == 0 {
		return nil
	}
	ms := make([]*transport.Message, len(fs))
	gone := map[string][]*transport.Stored{}
	for i, f := range fs {
		m, err := r.moved(f)
		if err != nil {
			return err
		}
		ms[i] = m
		gone[f.subject] = append(gone[f.subject], f.stored)
	}
	if err := r.t.Publisher().Publish(ctx, ms...); err != nil {
		return refused(err, "send %s on their way: %w", letters(len(fs)), err)
	}
	for subject, stored := range gone {
		// The jobs are out: an interruption waits until their letters are gone.
		if err := r.t.Discard(context.WithoutCancel(ctx), subject, stored...); err != nil {
			return refused(err, "the jobs of %s are sent, but their letters at %q stay: %w", letters(len(stored)), subject, err)
		}
	}
	for i, f := range fs {
		r.sent++
		if err := r.print(f, ms[i]); err != nil {
			return fmt.Errorf("print what was sent: %w", err)
		}
	}
	return ctx.Err()
}

func (r *redrive) print(f found, m *transport.Message) error {
	if r.output == "json" {
		enc := json.NewEncoder(r.s.out)
		enc.SetEscapeHTML(false)
		return enc.Encode(map[string]any{"id": f.letter.ID, "to": m.Subject, "generation": f.letter.Generation + 1, "position": f.stored.Position})
	}
	_, err := fmt.Fprintf(r.s.out, "%s to %s\n", f.letter.ID, m.Subject)
	return err
}

// moved is the message that sends a letter's job on its way.
func (r *redrive) moved(f found) (*transport.Message, error) {
	if f.problem != nil {
		return nil, f.problem
	}
	subject, err := r.target(f)
	if err != nil {
		return nil, err
	}
	return transport.Redriven(&f.stored.Message, subject)
}

// target is where the job came from. A route with wildcards takes it where the letter says it was.
func (r *redrive) target(f found) (string, error) {
	for _, route := range r.cfg.Routes {
		switch {
		case route.Name != f.letter.Route:
		case !strings.ContainsAny(route.From, "*>"):
			return route.From, nil
		case transport.MatchSubject(route.From, f.letter.Subject):
			return f.letter.Subject, nil
		default:
			return "", fmt.Errorf("it came from %q, which route %q no longer reads", f.letter.Subject, route.Name)
		}
	}
	return "", fmt.Errorf("the configuration has no route %q, where it died", f.letter.Route)
}

// verdict is the command's end when all that could be done is done.
func (r *redrive) verdict() error {
	if len(r.left) > 0 {
		return &exitError{code: exitFailed}
	}
	return nil
}
