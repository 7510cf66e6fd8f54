package jetstream

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

// A server writes down ten times a second what its consumers have handed out, and when it ends. One that was killed may have handed
// out more than it knows, one that lives or has ended well has not. A life is the time between two such losses; each has a name.

const (
	lifeFile  = "wasmsidecar.life"
	endedWell = " ended"
)

// beginLife returns the name of the life that a server on dir begins: that of the one before, if that one has ended well and may be
// gone on with, else a new one. A server that is killed from here on leaves a life behind that has not ended.
func beginLife(dir string, goOn bool) (string, error) {
	path := filepath.Join(dir, lifeFile)
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	name, well := strings.CutSuffix(strings.TrimSpace(string(b)), endedWell)
	if !goOn || !well || name == "" {
		name = nuid.Next()
	}
	return name, writeLife(path, name)
}

// endLife notes that a server has ended well.
func endLife(dir, name string) error {
	return writeLife(filepath.Join(dir, lifeFile), name+endedWell)
}

// writeLife replaces the file, so that it survives a loss of power.
func writeLife(path, text string) (err error) {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("note the server's life: %w", err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// life names the time since the server that has a stream was last killed, "" where that cannot be told: in a cluster another may have
// taken over, and behind a leaf node the server is not the one that we are connected to.
func (t *Transport) life(info *jetstream.StreamInfo) string {
	if t.cfg.Life != nil {
		return t.cfg.Life()
	}
	if here, _ := t.nc.ConnectedServerJetStream(); !here || info.Cluster != nil && info.Cluster.Name != "" {
		return ""
	}
	return t.nc.ConnectedServerId()
}
