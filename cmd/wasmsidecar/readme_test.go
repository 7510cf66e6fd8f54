package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/wasmsidecar/wasmsidecar/internal/services"
	"github.com/wasmsidecar/wasmsidecar/pkg/config"
	"github.com/wasmsidecar/wasmsidecar/pkg/sidecar"
)

// block is a fenced block of shell in the README: the words behind sh, the commands, and the output block that follows it.
type block struct {
	line   int
	marks  string
	shell  string
	output string
}

// TestReadme runs the README's blocks of shell one after another in one shell and compares what they print. Blocks marked skip
// are for people; those marked fails must end with an exit code; those marked compose run against the servers of
// scripts/services, with the sidecar of docker-compose.yml started from its configuration.
func TestReadme(t *testing.T) {
	t.Parallel()
	blocks := readme(t)
	dir := t.TempDir()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{
		"configs": root + "/configs", "examples": root + "/examples", "bin/wasmsidecar": exe, "bin/consume": exe,
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}

	var script strings.Builder
	script.WriteString(`
trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT
make() { [ "$*" = build ]; }
docker() {
  case "$*" in
    "compose up -d --wait") wait; bin/wasmsidecar --config compose.yaml 2>compose.log & bin/wasmsidecar healthcheck --wait 90s ;;
    "compose exec kafka "*) bin/consume wasm_jobs_dlq ;;
    "compose down") kill $(jobs -p); wait ;;
    *) echo "docker $*: not known here"; return 1 ;;
  esac
}
`)
	for i, b := range blocks {
		fmt.Fprintf(&script, "{\n%s\n} >out.%d 2>&1 </dev/null\necho $? >code.%d\n", b.shell, i, i)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", script.String())
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Dir = dir
	listen := loopback(t)
	cmd.Env = append(os.Environ(), "NATS_LISTEN="+listen, "NATS_URL=nats://"+listen,
		"WASMSIDECAR_DATA="+filepath.Join(dir, "data"), "XDG_CACHE_HOME="+filepath.Join(dir, "cache"),
		"ADMIN_LISTEN="+loopback(t), "KAFKA_BROKERS="+services.Kafka(t), "REDIS_ADDR="+services.StartRedis(t).Addr)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Errorf("the shell ended: %v\n%s", err, out.Bytes())
	}
	for i, b := range blocks {
		got, code := read(t, dir, fmt.Sprintf("out.%d", i)), strings.TrimSpace(read(t, dir, fmt.Sprintf("code.%d", i)))
		if fails := strings.Contains(b.marks, "fails"); fails != (code != "0") {
			t.Errorf("README.md:%d: exit code %s of\n%s\nwhich printed\n%s", b.line, code, b.shell, got)
		}
		if b.output != "" && !like(b.output).MatchString(got) {
			t.Errorf("README.md:%d: it printed\n%s\nand not\n%s", b.line, got, b.output)
		}
	}
	if t.Failed() {
		for _, name := range []string{"sidecar.log", "compose.log"} {
			t.Logf("%s:\n%s", name, read(t, dir, name))
		}
	}
}

func read(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// like matches text in which an ellipsis stands for anything.
func like(text string) *regexp.Regexp {
	return regexp.MustCompile(`^(?s:` + strings.ReplaceAll(regexp.QuoteMeta(strings.TrimSpace(text)), "…", ".*") + `)\s*$`)
}

func loopback(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// readme returns the blocks to run.
func readme(t *testing.T) []block {
	t.Helper()
	f, err := os.Open("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var blocks []block
	var fence, text string
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		switch {
		case !strings.HasPrefix(line, "```"):
			text += line + "\n"
			continue
		case line != "```":
			fence = strings.TrimPrefix(line, "```")
		default:
			lang, marks, _ := strings.Cut(fence, " ")
			switch {
			case lang == "sh" && !strings.Contains(marks, "skip"):
				blocks = append(blocks, block{line: n, marks: marks, shell: text})
			case lang == "output" && len(blocks) > 0:
				blocks[len(blocks)-1].output = text
			}
			fence = ""
		}
		text = ""
	}
	if err := lines.Err(); err != nil || len(blocks) < 6 {
		t.Fatalf("%d blocks, %v", len(blocks), err)
	}
	return blocks
}

// consume stands in for Kafka's console consumer: it prints the first message of a topic as that does, headers first.
func consume() {
	ctx, cancel := context.WithTimeout(context.Background(), scriptPatience)
	defer cancel()
	err := func() error {
		cfg, err := config.Load("kafka.yaml")
		if err != nil {
			return err
		}
		client, closeClient, err := sidecar.Dial(ctx, cfg, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		defer closeClient()
		tail, err := client.Tail(ctx, os.Args[1], true)
		if err != nil {
			return err
		}
		defer tail.Close()
		for {
			m, err := tail.Next(ctx)
			if err != nil {
				return err
			}
			var headers []string
			for _, f := range m.Header {
				headers = append(headers, f.Name+":"+f.Value)
			}
			line := strings.Join(headers, ",") + "\t" + string(m.Body)
			if strings.Contains(line, `"missing"`) { // other tests share the topic
				fmt.Println(line)
				return nil
			}
		}
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, "consume:", err)
		os.Exit(1)
	}
}
