package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/sidecar"
)

// scriptPatience bounds how long a script waits for something to come true; generous, because machines that test are busy.
const scriptPatience = 90 * time.Second

var update = flag.Bool("update", false, "rewrite what the scripts compare with")

// TestMain lets the scripts run this test binary as the command.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"wasmsidecar": main, "consume": consume})
}

// TestScripts runs testdata/script: one script for each promise of the command.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, scriptParams(t, "testdata/script"))
}

// TestDeadLetters runs one script over every broker: dead letters are listed, shown and sent on their way again (D-18).
func TestDeadLetters(t *testing.T) {
	t.Parallel()
	for name, head := range map[string]string{
		"embedded": "transport: embedded\nembedded: {listen: \"${LISTEN}\"}",
		"nats":     "transport: nats\nnats: {url: \"nats://${NATS}\", group: \"${UNIQUE}\"}",
		"redis":    "transport: redis\nredis: {addr: \"${REDIS}\"}",
		"kafka":    "transport: kafka\nstore: redis\nredis: {addr: \"${REDIS}\"}\nkafka: {brokers: [\"${KAFKA}\"], group: \"${UNIQUE}\", partitions: 2}",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := scriptParams(t, "testdata/dlq")
			setup := p.Setup
			p.Setup = func(e *testscript.Env) error {
				if err := setup(e); err != nil {
					return err
				}
				e.Setenv("HEAD", head)
				return nil
			}
			testscript.Run(t, p)
		})
	}
}

// TestShippedConfigurations runs each file of configs/ as it is shipped. Their names of topics and streams are fixed, so Redis and
// NATS are servers of this test, and those that share Kafka share the work.
func TestShippedConfigurations(t *testing.T) {
	t.Parallel()
	p := scriptParams(t, "testdata/shipped")
	natsAddr, redisAddr := services.StartNATS(t, "").Addr, services.StartRedis(t).Addr
	setup := p.Setup
	p.Setup = func(e *testscript.Env) error {
		if err := setup(e); err != nil {
			return err
		}
		e.Setenv("KAFKA_BROKERS", e.Getenv("KAFKA"))
		e.Setenv("REDIS_ADDR", redisAddr)
		e.Setenv("NATS_URL", "nats://"+natsAddr)
		return nil
	}
	testscript.Run(t, p)
}

// TestConfigurationsAreValid reads every shipped file without a variable set, as on a fresh machine and in the container.
func TestConfigurationsAreValid(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../configs/*.yaml")
	if err != nil || len(files) < 6 {
		t.Fatalf("%d configurations, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			cfg, err := config.Parse(file, text, nil)
			if err == nil {
				err = cfg.NeedRoutes()
			}
			if err != nil {
				t.Fatal(err)
			}
			for name, m := range cfg.Modules {
				if _, err := os.Stat(filepath.Join("../..", m.Source)); err != nil {
					t.Errorf("module %s: %v", name, err)
				}
			}
		})
	}
}

// scriptParams is what scripts find around them: the example guests, the shipped configurations, addresses of real servers, and
// the commands below.
func scriptParams(t *testing.T, dir string) testscript.Params {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{
		"ROOT":           root,
		"GUESTS":         filepath.Join(root, "examples", "guests"),
		"XDG_CACHE_HOME": t.TempDir(), // shared, so that modules are compiled once
		"KAFKA":          services.Kafka(t),
		"REDIS":          services.Redis(t),
		"NATS":           strings.TrimPrefix(services.NATS(t), "nats://"),
	}
	return testscript.Params{
		Dir:                 dir,
		RequireUniqueNames:  true,
		RequireExplicitExec: true,
		UpdateScripts:       *update,
		Setup: func(e *testscript.Env) error {
			for k, v := range env {
				e.Setenv(k, v)
			}
			e.Setenv("TMPDIR", os.TempDir())
			e.Setenv("UNIQUE", services.UniqueName(t))
			e.Values[signalled{}] = new(*exec.Cmd)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"addr": cmdAddr, "await": cmdAwait, "status": cmdStatus, "term": cmdTerm, "big": cmdBig, "tail": cmdTail, "expand": cmdExpand,
			"exits": cmdExits, "binary": cmdBinary, "hangup": cmdHangup, "request": cmdRequest, "exited": cmdExited,
		},
	}
}

// addr NAME...: sets each variable to a free loopback address. Another process may take it before it is used, and then the
// script fails by name.
func cmdAddr(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		ts.Setenv(name, ln.Addr().String())
		ts.Check(ln.Close())
	}
}

// await STATUS URL [REGEXP]: asks until the answer has the status and its body matches, and prints the body.
func cmdAwait(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: await STATUS URL [REGEXP]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	match := regexp.MustCompile("(?s)" + strings.Join(args[2:], ""))
	var last string
	for end := time.Now().Add(scriptPatience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		status, body, err := ask(args[1])
		if err == nil && status == want && match.MatchString(body) {
			fmt.Fprint(ts.Stdout(), body)
			return
		}
		last = fmt.Sprintf("status %d, error %v, body:\n%s", status, err, body)
	}
	ts.Fatalf("%s did not answer %d %q; the last answer: %s", args[1], want, strings.Join(args[2:], ""), last)
}

// status STATUS URL: asks once.
func cmdStatus(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: status STATUS URL")
	}
	status, body, err := ask(args[1])
	ts.Check(err)
	if strconv.Itoa(status) != args[0] {
		ts.Fatalf("%s answered %d, want %s:\n%s", args[1], status, args[0], body)
	}
	fmt.Fprint(ts.Stdout(), body)
}

func ask(url string) (int, string, error) {
	res, err := (&http.Client{Timeout: 5 * time.Second}).Get(url)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res.StatusCode, string(body), err
}

// term: sends SIGTERM to the command that was put into the background last.
func cmdTerm(ts *testscript.TestScript, _ bool, _ []string) {
	cmds := ts.BackgroundCmds()
	if len(cmds) == 0 {
		ts.Fatalf("nothing runs in the background")
	}
	cmd := cmds[len(cmds)-1]
	*ts.Value(signalled{}).(**exec.Cmd) = cmd
	ts.Check(cmd.Process.Signal(syscall.SIGTERM))
}

// hangup: sends SIGHUP to the command that was put into the background last.
func cmdHangup(ts *testscript.TestScript, _ bool, _ []string) {
	cmds := ts.BackgroundCmds()
	if len(cmds) == 0 {
		ts.Fatalf("nothing runs in the background")
	}
	ts.Check(cmds[len(cmds)-1].Process.Signal(syscall.SIGHUP))
}

// signalled is the key of the command that term signalled last.
type signalled struct{}

// exited CODE: the command that term signalled last, and that was waited for, ended with the code.
func cmdExited(ts *testscript.TestScript, _ bool, args []string) {
	cmd := *ts.Value(signalled{}).(**exec.Cmd)
	if len(args) != 1 || cmd == nil || cmd.ProcessState == nil {
		ts.Fatalf("usage: term, wait, exited CODE")
	}
	if got := strconv.Itoa(cmd.ProcessState.ExitCode()); got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}

// exits CODE COMMAND [ARG...]: as exec, for a command that ends with the code.
func cmdExits(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND [ARG...]")
	}
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var e *exec.ExitError
		if !errors.As(err, &e) {
			ts.Fatalf("%v", err)
		}
		got = e.ExitCode()
	}
	if strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit code %d, want %s", got, args[0])
	}
}

// request ADDR SUBJECT BODY: asks as any NATS client would, and prints the answer.
func cmdRequest(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: request ADDR SUBJECT BODY")
	}
	nc, err := nats.Connect("nats://" + args[0])
	ts.Check(err)
	defer nc.Close()
	m, err := nc.Request(args[1], []byte(args[2]), scriptPatience)
	ts.Check(err)
	fmt.Fprintln(ts.Stdout(), string(m.Data))
}

// big FILE BYTES: writes a file of that many bytes.
func cmdBig(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: big FILE BYTES")
	}
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.Repeat("x", n)), 0o600))
}

// binary FILE: writes a file that is no text.
func cmdBinary(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: binary FILE")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte{0x81, 0, 'a', '\n'}, 0o600))
}

// expand FILE...: replaces ${NAME} in files by the script's variables.
func cmdExpand(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		text := os.Expand(ts.ReadFile(name), ts.Getenv)
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(text), 0o600))
	}
}

// tail CONFIG SUBJECT REGEXP: reads the subject from its beginning until a message matches, and prints that: its headers, one a
// line, an empty line and its body.
func cmdTail(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: tail CONFIG SUBJECT REGEXP")
	}
	cfg, err := configFor(ts, args[0])
	ts.Check(err)
	match := regexp.MustCompile(args[2])
	ctx, cancel := context.WithTimeout(context.Background(), scriptPatience)
	defer cancel()
	client, closeClient, err := sidecar.Dial(ctx, cfg, slog.New(slog.DiscardHandler))
	ts.Check(err)
	defer closeClient()
	tail, err := client.Tail(ctx, args[1], true)
	ts.Check(err)
	defer tail.Close()
	for {
		m, err := tail.Next(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			ts.Fatalf("nothing at %q matches %q", args[1], args[2])
		}
		ts.Check(err)
		var text strings.Builder
		for _, f := range m.Header {
			fmt.Fprintf(&text, "%s: %s\n", f.Name, f.Value)
		}
		fmt.Fprintf(&text, "\n%s\n", m.Body)
		if match.MatchString(text.String()) {
			fmt.Fprint(ts.Stdout(), text.String())
			return
		}
	}
}

// configFor reads a configuration with the script's variables; a bare name is one of the shipped ones.
func configFor(ts *testscript.TestScript, name string) (*config.Config, error) {
	path := ts.MkAbs(name)
	if _, err := os.Stat(path); err != nil {
		path = filepath.Join(ts.Getenv("ROOT"), "configs", name)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return config.Parse(path, text, func(name string) (string, bool) {
		v := ts.Getenv(name)
		return v, v != ""
	})
}
