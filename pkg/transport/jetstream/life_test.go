package jetstream

import (
	"os"
	"path/filepath"
	"testing"
)

// A life goes on through ends that were well, and ends with a kill, a write that failed, or a file that says nothing.
func TestLife(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	begin := func(goOn bool) string {
		t.Helper()
		name, err := beginLife(dir, goOn)
		if err != nil || name == "" {
			t.Fatalf("life %q: %v", name, err)
		}
		return name
	}
	end := func(name string) {
		t.Helper()
		if err := endLife(dir, name); err != nil {
			t.Fatal(err)
		}
	}
	first := begin(true)
	end(first)
	if got := begin(true); got != first {
		t.Errorf("after a good end the life is %q, want %q", got, first)
	}
	second := begin(true) // the one before was killed
	if second == first {
		t.Error("the life goes on after a kill")
	}
	end(second)
	third := begin(false)
	if third == second {
		t.Error("the life goes on although it may not")
	}
	for _, text := range []string{"", " ended\n", "cut"} {
		if err := os.WriteFile(filepath.Join(dir, lifeFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := begin(true); got == third || got == "cut" {
			t.Errorf("after %q the life is %q", text, got)
		}
	}
}

// The server of a directory has the same life when it comes back after Shutdown.
func TestEmbedGoesOnWithItsLife(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var lives [2]string
	for i := range lives {
		e, err := Embed(EmbedConfig{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		lives[i] = e.Life()
		if err := e.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if lives[0] == "" || lives[0] != lives[1] {
		t.Errorf("lives %q", lives)
	}
}
