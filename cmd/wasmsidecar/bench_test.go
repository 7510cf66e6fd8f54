package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// BenchmarkStart measures the real binary on the embedded server: from its start to readiness, with compiled modules in the
// cache, and the resident memory it has while idle. Both are medians.
func BenchmarkStart(b *testing.B) {
	bin, cache := buildBinary(b), b.TempDir()
	guests, err := filepath.Abs("../../examples/guests")
	if err != nil {
		b.Fatal(err)
	}
	var ready, memory []float64
	for b.Loop() {
		admin := freeAddress(b)
		cmd := exec.Command(bin, "run", "--dir", b.TempDir(), "--listen", freeAddress(b), "--admin", admin,
			filepath.Join(guests, "echo.wasm"), filepath.Join(guests, "upper.wasm"), filepath.Join(guests, "adder.wasm"))
		cmd.Env = append(os.Environ(), "XDG_CACHE_HOME="+cache)
		began := time.Now()
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		for {
			res, err := http.Get("http://" + admin + "/readyz")
			if err == nil {
				res.Body.Close()
				if res.StatusCode == http.StatusOK {
					break
				}
			}
			time.Sleep(time.Millisecond)
		}
		ready = append(ready, time.Since(began).Seconds()*1000)
		time.Sleep(500 * time.Millisecond) // idle
		memory = append(memory, resident(b, cmd.Process.Pid))
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			b.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			b.Fatal(err)
		}
	}
	slices.Sort(ready)
	slices.Sort(memory)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(ready[len(ready)/2], "ms-to-ready")
	b.ReportMetric(memory[len(memory)/2], "MB-idle")
}

// buildBinary builds the command as it is released.
func buildBinary(t testing.TB) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "wasmsidecar")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}

// freeAddress is a loopback address that nobody listens at.
func freeAddress(t testing.TB) string {
	t.Helper()
	addr, err := freeListen()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// resident returns the resident memory of a process in MB.
func resident(b *testing.B, pid int) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	var kb float64
	_, after, _ := strings.Cut(string(status), "VmRSS:")
	if _, err := fmt.Sscan(after, &kb); err != nil {
		b.Fatal(err)
	}
	return kb / 1024
}
