// Package composecheck tests docker-compose.yml and Dockerfile without a container engine: compose-go and BuildKit's own parsers
// read them, and where buildah is installed the final stage is built and run.
package composecheck

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
)

const root = "../.."

func load(t *testing.T, file string) (*types.Project, error) {
	t.Helper()
	options, err := cli.NewProjectOptions([]string{file})
	if err != nil {
		t.Fatal(err)
	}
	return options.LoadProject(t.Context())
}

func project(t *testing.T) *types.Project {
	t.Helper()
	p, err := load(t, filepath.Join(root, "docker-compose.yml"))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestComposeServices(t *testing.T) {
	t.Parallel()
	p := project(t)
	for _, name := range []string{"kafka", "kafka-ui", "redis", "nats", "sidecar"} {
		if _, ok := p.Services[name]; !ok {
			t.Errorf("there is no service %q", name)
		}
	}
	for name, s := range p.Services {
		if s.HealthCheck == nil || s.HealthCheck.Disable || len(s.HealthCheck.Test) == 0 {
			t.Errorf("%s has no health check", name)
		}
		if _, tag, ok := strings.Cut(s.Image, ":"); !ok || tag == "latest" {
			t.Errorf("%s: image %q is not pinned by a tag", name, s.Image)
		}
		if len(s.Ports) == 0 {
			t.Errorf("%s publishes no port", name)
		}
		for _, port := range s.Ports {
			if port.HostIP != "127.0.0.1" {
				t.Errorf("%s publishes port %s on %q; only 127.0.0.1 is meant", name, port.Published, port.HostIP)
			}
		}
		for dependency, d := range s.DependsOn {
			if d.Condition != types.ServiceConditionHealthy {
				t.Errorf("%s waits for %s to be %q, want healthy", name, dependency, d.Condition)
			}
		}
		for _, v := range s.Volumes {
			if v.Type == types.VolumeTypeVolume && v.Source == "" {
				t.Errorf("%s: the volume at %s has no name", name, v.Target)
			}
		}
	}
}

func TestComposeSidecar(t *testing.T) {
	t.Parallel()
	p := project(t)
	s := p.Services["sidecar"]
	if s.User != "65532:65532" {
		t.Errorf("user is %q, want 65532:65532", s.User)
	}
	if !s.ReadOnly || len(s.CapDrop) != 1 || s.CapDrop[0] != "ALL" || s.Privileged {
		t.Errorf("read_only is %t, cap_drop %v, privileged %t", s.ReadOnly, s.CapDrop, s.Privileged)
	}
	for _, broker := range []string{"kafka", "redis"} {
		if _, ok := s.DependsOn[broker]; !ok {
			t.Errorf("it does not wait for %s", broker)
		}
	}
	if s.Build == nil || s.Build.Dockerfile != "Dockerfile" {
		t.Errorf("it is not built from the Dockerfile: %+v", s.Build)
	}
	for _, v := range s.Volumes {
		if v.Type != types.VolumeTypeBind {
			continue
		}
		if !v.ReadOnly {
			t.Errorf("%s is mounted for writing", v.Source)
		}
		if _, err := os.Stat(v.Source); err != nil {
			t.Errorf("what is mounted at %s does not exist: %v", v.Target, err)
		}
		if got := strings.Join(s.Command, " "); !strings.Contains(got, v.Target) {
			t.Errorf("command %q does not read %s", got, v.Target)
		}
	}
}

// What compose-go accepts means something only if it refuses what is wrong.
func TestComposeMistakesAreRefused(t *testing.T) {
	t.Parallel()
	good, err := os.ReadFile(filepath.Join(root, "docker-compose.yml"))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ old, new, says string }{
		"misspelt key":     {"healthcheck:", "helthcheck:", "helthcheck"},
		"misspelt option":  {"start_period: 30s", "start_perod: 30s", "start_perod"},
		"unknown volume":   {"redis-data:/data", "reddis-data:/data", "reddis-data"},
		"unknown service":  {"redis: {condition: service_healthy}", "reddis: {condition: service_healthy}", "reddis"},
		"unknown duration": {"interval: 15s", "interval: fifteen", "fifteen"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad := strings.Replace(string(good), c.old, c.new, 1)
			if bad == string(good) {
				t.Fatalf("%q is not in the file", c.old)
			}
			file := filepath.Join(t.TempDir(), "docker-compose.yml")
			if err := os.WriteFile(file, []byte(bad), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := load(t, file); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v, want one that names %q", err, c.says)
			}
		})
	}
}
