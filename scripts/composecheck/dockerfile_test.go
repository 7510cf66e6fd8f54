package composecheck

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

func stages(t *testing.T, dockerfile []byte) ([]instructions.Stage, error) {
	t.Helper()
	parsed, err := parser.Parse(bytes.NewReader(dockerfile))
	if err != nil {
		return nil, err
	}
	all, _, err := instructions.Parse(parsed.AST, nil)
	return all, err
}

func dockerfile(t *testing.T) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// final is what the last stage says, found by the type of its instructions.
type final struct {
	copies      []*instructions.CopyCommand
	user        string
	entrypoint  *instructions.EntrypointCommand
	healthcheck *instructions.HealthCheckCommand
}

func TestDockerfile(t *testing.T) {
	t.Parallel()
	all, err := stages(t, dockerfile(t))
	if err != nil {
		t.Fatal(err)
	}
	last := all[len(all)-1]
	if last.BaseName != "scratch" {
		t.Errorf("the final stage is from %q, want scratch", last.BaseName)
	}
	var f final
	for _, command := range last.Commands {
		switch c := command.(type) {
		case *instructions.CopyCommand:
			f.copies = append(f.copies, c)
		case *instructions.UserCommand:
			f.user = c.User
		case *instructions.EntrypointCommand:
			f.entrypoint = c
		case *instructions.HealthCheckCommand:
			f.healthcheck = c
		case *instructions.RunCommand:
			t.Errorf("the final stage has no shell to run %v", c.CmdLine)
		case *instructions.AddCommand:
			t.Errorf("ADD of %v; COPY is plain", c.SourcePaths)
		}
	}
	if f.user != "65532:65532" {
		t.Errorf("user is %q, want 65532:65532", f.user)
	}
	if f.entrypoint == nil || f.entrypoint.PrependShell || !slices.Equal(f.entrypoint.CmdLine, []string{"/wasmsidecar"}) {
		t.Errorf("entry point is %+v", f.entrypoint)
	}
	if f.healthcheck == nil || !slices.Equal(f.healthcheck.Health.Test, []string{"CMD", "/wasmsidecar", "healthcheck"}) {
		t.Errorf("health check is %+v; without a shell it must be the binary itself", f.healthcheck)
	}
	want := map[string]bool{"/wasmsidecar": true, "/etc/ssl/certs/ca-certificates.crt": true, "/data": true, "/tmp": true}
	for _, c := range f.copies {
		delete(want, c.DestPath)
		if !slices.ContainsFunc(all[:len(all)-1], func(s instructions.Stage) bool { return s.Name == c.From }) {
			t.Errorf("COPY --from=%s: there is no such stage", c.From)
		}
	}
	for path := range want {
		t.Errorf("the image lacks %s", path)
	}

	version := goVersion(t)
	if base := all[0].BaseName; base != "golang:"+version+"-bookworm" {
		t.Errorf("the build stage is from %q; go.mod says Go %s", base, version)
	}
	var builds bool
	for _, command := range all[0].Commands {
		if run, ok := command.(*instructions.RunCommand); ok {
			line := strings.Join(run.CmdLine, " ")
			builds = builds || strings.Contains(line, "CGO_ENABLED=0 go build") && strings.Contains(line, "./cmd/wasmsidecar")
		}
	}
	if !builds {
		t.Error("no RUN builds ./cmd/wasmsidecar with CGO_ENABLED=0; a binary that wants a C library does not start in scratch")
	}
}

func TestDockerfileMistakesAreRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ old, new string }{
		"misspelt instruction": {"ENTRYPOINT", "ENTRYPONT"},
		"misspelt flag":        {"--start-period", "--start-perod"},
	} {
		bad := bytes.Replace(dockerfile(t), []byte(c.old), []byte(c.new), 1)
		if _, err := stages(t, bad); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// goVersion is the language version of the main module: 1.26 of 1.26.0.
func goVersion(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "go "); ok {
			parts := strings.SplitN(strings.TrimSpace(v), ".", 3)
			return parts[0] + "." + parts[1]
		}
	}
	t.Fatal("go.mod names no Go version")
	return ""
}

// The final stage as it stands is built over a scratch stage that holds what the build stage would have made, and its binary runs
// there. That needs buildah and root; without them TestDockerfile's look at the instructions is all there is.
func TestFinalStageBuildsAndRuns(t *testing.T) {
	t.Parallel()
	buildah, err := exec.LookPath("buildah")
	if err != nil || os.Getuid() != 0 {
		if _, err := stages(t, dockerfile(t)); err != nil {
			t.Fatal(err)
		}
		t.Logf("not built: buildah is missing or this is not root (%v)", err)
		return
	}
	dir := t.TempDir()
	run := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "TMPDIR="+dir)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, "context", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"etc/ssl/certs/ca-certificates.crt", "out/tmp/keep", "out/data/keep", "out/configs/embedded.yaml", "out/examples/guests/echo.wasm"} {
		write(name, "x")
	}
	run("go", "-C", root, "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "context", "out", "wasmsidecar"), "./cmd/wasmsidecar")
	text := string(dockerfile(t))
	at := strings.LastIndex(text, "\nFROM scratch")
	if at < 0 {
		t.Fatal("there is no final stage from scratch")
	}
	write("Dockerfile", "FROM scratch AS build\nCOPY . /\n"+text[at:])

	storage := []string{"--root", filepath.Join(dir, "storage"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs"}
	b := func(args ...string) string {
		t.Helper()
		return run(buildah, append(slices.Clone(storage), args...)...)
	}
	b("bud", "--format", "docker", "--isolation", "chroot", "-t", "check", filepath.Join(dir, "context"))
	var image struct {
		Docker struct {
			Config struct {
				User        string
				Entrypoint  []string
				Healthcheck struct{ Test []string }
				Volumes     map[string]struct{}
			} `json:"config"`
		}
	}
	if err := json.Unmarshal([]byte(b("inspect", "--type", "image", "check")), &image); err != nil {
		t.Fatal(err)
	}
	c := image.Docker.Config
	got := fmt.Sprintf("%s %v %v %d", c.User, c.Entrypoint, c.Healthcheck.Test, len(c.Volumes))
	if want := "65532:65532 [/wasmsidecar] [CMD /wasmsidecar healthcheck] 1"; got != want {
		t.Errorf("the image says %s, want %s", got, want)
	}
	container := strings.TrimSpace(b("from", "--quiet", "check"))
	if out := b("run", "--isolation", "chroot", container, "--", "/wasmsidecar", "version"); !strings.Contains(out, "wasmsidecar") {
		t.Errorf("wasmsidecar version in the image says %q", out)
	}
	b("rm", container)
}
