//go:build unix

package wasi

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/tetratelabs/wazero/api"

	"github.com/wasmsidecar/wasmsidecar/pkg/job"
)

// box is a guest with a directory /box that it may change and /shelf that it may read.
type box struct {
	t       *testing.T
	m       api.Module
	p       *Process
	dir     string // of /box; its parent holds a secret
	trouble *job.Error
}

const (
	boxFD, shelfFD = 3, 4

	rw = rightRead | rightWrite
	ro = rightRead
)

func newBox(t *testing.T, write bool) *box {
	t.Helper()
	top := t.TempDir()
	b := &box{t: t, m: instantiate(t), dir: filepath.Join(top, "box")}
	shelf := filepath.Join(top, "shelf")
	for _, d := range []string{b.dir, shelf} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b.put("../secret", "secret")
	b.put("../shelf/book", "words")
	var preopens []Preopen
	for i, d := range []string{b.dir, shelf} {
		root, err := os.OpenRoot(d)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = root.Close() })
		preopens = append(preopens, Preopen{Name: "/" + filepath.Base(d), Root: root, Write: write && i == 0})
	}
	b.p = &Process{Files: Files{Preopens: preopens, Open: 8, Bytes: 1 << 20, Refused: func(err *job.Error) { b.trouble = err }}}
	t.Cleanup(b.p.Close)
	return b
}

// put writes a file of the host's, below the box.
func (b *box) put(path, text string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, path), []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

func (b *box) text(path string) string {
	b.t.Helper()
	got, err := os.ReadFile(filepath.Join(b.dir, path))
	if err != nil {
		b.t.Fatal(err)
	}
	return string(got)
}

func (b *box) link(target, path string) {
	b.t.Helper()
	if err := os.Symlink(target, filepath.Join(b.dir, path)); err != nil {
		b.t.Fatal(err)
	}
}

// Where things are in the guest's memory.
const (
	atPath, atOther, atResult, atIovec, atData = 1024, 8192, 16384, 16400, 20000
)

func (b *box) mem() api.Memory { return b.m.Memory() }

func (b *box) call(name string, args ...uint64) errno {
	b.t.Helper()
	return call(b.t, b.m, b.p, name, args...)
}

func (b *box) path(path string) (ptr, n uint64) {
	b.mem().WriteString(atPath, path)
	return atPath, uint64(len(path))
}

func (b *box) other(path string) (ptr, n uint64) {
	b.mem().WriteString(atOther, path)
	return atOther, uint64(len(path))
}

func (b *box) result() uint32 { n, _ := b.mem().ReadUint32Le(atResult); return n }

func (b *box) open(dir uint64, path string, how, rights, flags uint64) (uint64, errno) {
	b.t.Helper()
	ptr, n := b.path(path)
	e := b.call("path_open", dir, follow, ptr, n, how, rights, 0, flags, atResult)
	return uint64(b.result()), e
}

func (b *box) write(fd uint64, text string) (uint32, errno) {
	b.t.Helper()
	b.mem().WriteString(atData, text)
	b.mem().WriteUint32Le(atIovec, atData)
	b.mem().WriteUint32Le(atIovec+4, uint32(len(text)))
	e := b.call("fd_write", fd, atIovec, 1, atResult)
	return b.result(), e
}

func (b *box) read(fd uint64, n uint32) (string, errno) {
	b.t.Helper()
	b.mem().WriteUint32Le(atIovec, atData)
	b.mem().WriteUint32Le(atIovec+4, n)
	if e := b.call("fd_read", fd, atIovec, 1, atResult); e != eOK {
		return "", e
	}
	got, _ := b.mem().Read(atData, b.result())
	return string(got), eOK
}

func (b *box) on(name string, dir uint64, path string) errno {
	b.t.Helper()
	ptr, n := b.path(path)
	return b.call(name, dir, ptr, n)
}

func (b *box) onTwo(name string, from, to string) errno {
	b.t.Helper()
	ptr, n := b.path(from)
	ptr2, n2 := b.other(to)
	if name == "path_link" {
		return b.call(name, boxFD, 0, ptr, n, boxFD, ptr2, n2)
	}
	return b.call(name, boxFD, ptr, n, boxFD, ptr2, n2)
}

func (b *box) want(what string, got, want errno) {
	b.t.Helper()
	if got != want {
		b.t.Errorf("%s: errno %d, want %d", what, got, want)
	}
}

// What programs do with files works, and the host finds it.
func TestFiles(t *testing.T) {
	t.Parallel()
	b := newBox(t, true)
	for fd, name := range map[uint64]string{boxFD: "/box", shelfFD: "/shelf"} {
		b.want("prestat", b.call("fd_prestat_get", fd, atResult), eOK)
		n, _ := b.mem().ReadUint32Le(atResult + 4)
		b.want("its name", b.call("fd_prestat_dir_name", fd, atData, uint64(n)), eOK)
		if got, _ := b.mem().Read(atData, n); string(got) != name {
			t.Errorf("preopen %d is %s, want %s", fd, got, name)
		}
	}
	b.want("the last preopen", b.call("fd_prestat_get", 5, atResult), eBADF)

	b.want("mkdir", b.on("path_create_directory", boxFD, "d"), eOK)
	b.want("mkdir again", b.on("path_create_directory", boxFD, "d"), eEXIST)
	fd, e := b.open(boxFD, "d/f", openCreate|openExclusive, rw, 0)
	b.want("create", e, eOK)
	if fd != 5 {
		t.Errorf("descriptor %d, want the lowest that is free", fd)
	}
	_, e = b.open(boxFD, "d/f", openCreate|openExclusive, rw, 0)
	b.want("create again", e, eEXIST)
	n, e := b.write(fd, "hello world")
	if e != eOK || n != 11 || b.text("d/f") != "hello world" {
		t.Errorf("wrote %d, errno %d: %q", n, e, b.text("d/f"))
	}
	b.want("seek", b.call("fd_seek", fd, 1<<64-5, 2, atResult), eOK) // -5 from the end
	if s, e := b.read(fd, 100); s != "world" || e != eOK {
		t.Errorf("read %q, errno %d", s, e)
	}
	b.want("tell", b.call("fd_tell", fd, atResult), eOK)
	if b.result() != 11 {
		t.Errorf("at %d", b.result())
	}
	b.want("seek before the beginning", b.call("fd_seek", fd, 1<<64-12, 1, atResult), eINVAL)
	b.want("pread", b.call("fd_pread", fd, atIovec, 1, 6, atResult), eOK)
	b.mem().WriteString(atData, "W")
	b.mem().WriteUint32Le(atIovec+4, 1)
	b.want("pwrite", b.call("fd_pwrite", fd, atIovec, 1, 6, atResult), eOK)
	b.want("set size", b.call("fd_filestat_set_size", fd, 7), eOK)
	b.want("allocate", b.call("fd_allocate", fd, 0, 5), eOK)
	b.want("sync", b.call("fd_sync", fd), eOK)
	b.want("datasync", b.call("fd_datasync", fd), eOK)
	b.want("advise", b.call("fd_advise", fd, 0, 0, 1), eOK)
	b.want("times", b.call("fd_filestat_set_times", fd, 0, 1e18, setModified), eOK)
	b.want("stat", b.call("fd_filestat_get", fd, atData), eOK)
	size, _ := b.mem().ReadUint64Le(atData + 32)
	modified, _ := b.mem().ReadUint64Le(atData + 48)
	if kind, _ := b.mem().ReadByte(atData + 16); b.text("d/f") != "hello W" || size != 7 || modified != 1e18 || kind != typeRegular {
		t.Errorf("%q: size %d, modified %d, type %d", b.text("d/f"), size, modified, kind)
	}
	b.want("fdstat", b.call("fd_fdstat_get", fd, atData), eOK)
	b.want("close", b.call("fd_close", fd), eOK)
	b.want("close again", b.call("fd_close", fd), eBADF)

	for i := range 2 { // two who append do not write over one another
		a, e := b.open(boxFD, "log", openCreate, rightWrite, flagAppend)
		b.want("open to append", e, eOK)
		b.write(a, fmt.Sprint("line ", i, "\n"))
	}
	if got := b.text("log"); got != "line 0\nline 1\n" {
		t.Errorf("log %q", got)
	}
	b.want("rename", b.onTwo("path_rename", "log", "d/log"), eOK)
	b.want("link", b.onTwo("path_link", "d/log", "log2"), eOK)
	b.want("symlink", b.call("path_symlink", atPath, 1, boxFD, atOther, 1), ePERM)
	b.want("remove what is full", b.on("path_remove_directory", boxFD, "d"), eNOTEMPTY)
	b.want("unlink a directory", b.on("path_unlink_file", boxFD, "d"), eISDIR)
	b.want("remove a file", b.on("path_remove_directory", boxFD, "log2"), eNOTDIR)
	b.want("unlink", b.on("path_unlink_file", boxFD, "log2"), eOK)
	b.want("unlink again", b.on("path_unlink_file", boxFD, "log2"), eNOENT)
	ptr, n64 := b.path("d/log")
	b.want("path times", b.call("path_filestat_set_times", boxFD, follow, ptr, n64, 0, 0, readNow|modifiedNow), eOK)
	b.want("path stat", b.call("path_filestat_get", boxFD, follow, ptr, n64, atData), eOK)
	b.link("d/log", "alias")
	ptr, n64 = b.path("alias")
	b.want("lstat", b.call("path_filestat_get", boxFD, 0, ptr, n64, atData), eOK)
	if kind, _ := b.mem().ReadByte(atData + 16); kind != typeSymlink {
		t.Errorf("a link has type %d", kind)
	}
	b.want("readlink", b.call("path_readlink", boxFD, ptr, n64, atData, 100, atResult), eOK)
	if got, _ := b.mem().Read(atData, b.result()); string(got) != "d/log" {
		t.Errorf("the link leads to %s", got)
	}
	b.want("open a link as it is", b.call("path_open", boxFD, 0, ptr, n64, 0, ro, 0, 0, atResult), eLOOP)
	fd, e = b.open(boxFD, "alias", 0, ro, 0)
	b.want("open a link", e, eOK)
	if _, e := b.write(fd, "x"); e != eBADF {
		t.Errorf("writing to what is open for reading: errno %d", e)
	}

	d, e := b.open(boxFD, "d", openDirectory, ro, 0)
	b.want("open a directory", e, eOK)
	_, e = b.open(d, "../d/./f", 0, ro, 0)
	b.want("out of an opened directory", e, eNOTCAPABLE)
	fd, e = b.open(d, "f", openTruncate, rightWrite, 0)
	if b.want("truncate", e, eOK); b.text("d/f") != "" {
		t.Error("it is not empty")
	}
	b.want("renumber", b.call("fd_renumber", fd, d), eOK)
	_, e = b.write(d, "there")
	if b.want("write where it is now", e, eOK); b.text("d/f") != "there" {
		t.Error("it is not there")
	}
	b.want("renumber to stdout", b.call("fd_renumber", d, 1), eNOTSUP)
	if b.p.Pristine() {
		t.Error("the process is as it was")
	}
}

// A directory is read in pieces of any size, and again from its beginning.
func TestReadDir(t *testing.T) {
	t.Parallel()
	b := newBox(t, false)
	var want []string
	for i := range 3 * entries {
		name := fmt.Sprintf("file-%d", i)
		b.put(name, "")
		want = append(want, name)
	}
	want = append(want, ".", "..")
	slices.Sort(want)
	for _, size := range []uint64{40, 100, 4096, 30000} {
		var got []string
		for cookie := uint64(0); ; {
			b.want("readdir", b.call("fd_readdir", boxFD, atData, size, cookie, atResult), eOK)
			used := b.result()
			buf, _ := b.mem().Read(atData, used)
			for len(buf) >= 24 {
				n := int(binary.LittleEndian.Uint32(buf[16:]))
				if len(buf) < 24+n {
					break
				}
				cookie = binary.LittleEndian.Uint64(buf)
				got, buf = append(got, string(buf[24:24+n])), buf[24+n:]
			}
			if uint64(used) < size {
				break
			}
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("in pieces of %d: %d entries, want %d", size, len(got), len(want))
		}
	}
	b.want("from somewhere", b.call("fd_readdir", boxFD, atData, 4096, 5, atResult), eOK)
	b.want("behind the end", b.call("fd_readdir", boxFD, atData, 4096, 1<<40, atResult), eOK)
	if b.result() != 0 {
		t.Error("there is something behind the end")
	}
}

// Nothing leads out of a directory, and the guest is told that it was refused.
func TestNoWayOut(t *testing.T) {
	t.Parallel()
	b := newBox(t, true)
	b.link("/etc/passwd", "absolute")
	b.link("../secret", "up")
	b.link("/proc/self/root", "proc")
	b.link("/proc/self/environ", "environ")
	b.link("..", "parent")
	b.link("loop", "loop")
	if err := os.MkdirAll(filepath.Join(b.dir, "a/b"), 0o755); err != nil {
		t.Fatal(err)
	}
	b.link("../../../secret", "a/b/far")
	long := strings.Repeat("x", 300)
	for path, want := range map[string]errno{
		"../secret": eNOTCAPABLE, "a/../../secret": eNOTCAPABLE, "/etc/passwd": eNOTCAPABLE, "/": eNOTCAPABLE, "..": eNOTCAPABLE,
		"./..": eNOTCAPABLE, "a//..//..//secret": eNOTCAPABLE, "absolute": eNOTCAPABLE, "up": eNOTCAPABLE, "proc/etc/passwd": eNOTCAPABLE,
		"environ": eNOTCAPABLE, "parent/secret": eNOTCAPABLE, "a/b/far": eNOTCAPABLE, "loop": eLOOP, long: eNAMETOOLONG,
		strings.Repeat("a/", 3000): eNAMETOOLONG, "": eNOENT, "\xff": eILSEQ, "a\x00b": eINVAL, "missing/../../secret": eNOTCAPABLE,
	} {
		what := fmt.Sprintf("%.40q", path)
		_, e := b.open(boxFD, path, 0, ro, 0)
		b.want("open "+what, e, want)
		if want == eNOTCAPABLE {
			if job.KindOf(b.trouble) != job.KindDenied {
				t.Errorf("open %s: trouble %v", what, b.trouble)
			}
			_, e := b.open(boxFD, path, openCreate, rw, 0)
			b.want("create "+what, e, want)
			ptr, n := b.path(path)
			b.want("stat "+what, b.call("path_filestat_get", boxFD, follow, ptr, n, atData), want)
			b.want("times "+what, b.call("path_filestat_set_times", boxFD, follow, ptr, n, 0, 0, modifiedNow), want)
		}
	}
	for _, path := range []string{"../x", "parent/x", "proc/tmp/x", "/tmp/x"} {
		b.want("mkdir "+path, b.on("path_create_directory", boxFD, path), eNOTCAPABLE)
		b.want("unlink "+path, b.on("path_unlink_file", boxFD, path), eNOTCAPABLE)
		b.want("rename to "+path, b.onTwo("path_rename", "a", path), eNOTCAPABLE)
		b.want("rename from "+path, b.onTwo("path_rename", path, "a"), eNOTCAPABLE)
		b.want("link from "+path, b.onTwo("path_link", path, "stolen"), eNOTCAPABLE)
	}
	b.want("a pointer out of bounds", b.call("path_open", boxFD, 0, outOfBounds, 10, 0, ro, 0, 0, atResult), eFAULT)
	if b.text("../secret") != "secret" {
		t.Error("the secret was changed")
	}
}

// What is no file and no directory is not opened, and nobody waits for it.
func TestOnlyFiles(t *testing.T) {
	t.Parallel()
	b := newBox(t, true)
	makePipe(t, filepath.Join(b.dir, "pipe"))
	for _, rights := range []uint64{ro, rightWrite, rw} {
		_, e := b.open(boxFD, "pipe", 0, rights, 0)
		b.want("open a pipe", e, ePERM)
	}
}

// What is granted for reading is not changed.
func TestReadOnly(t *testing.T) {
	t.Parallel()
	b := newBox(t, false)
	b.put("f", "text")
	for _, how := range []struct{ open, rights uint64 }{{0, rw}, {0, rightWrite}, {openTruncate, ro}, {openCreate, rw}} {
		_, e := b.open(boxFD, "f", how.open, how.rights, 0)
		b.want("open", e, eROFS)
	}
	_, e := b.open(boxFD, "new", openCreate, ro, 0)
	b.want("create", e, eROFS)
	b.want("mkdir", b.on("path_create_directory", boxFD, "d"), eROFS)
	b.want("unlink", b.on("path_unlink_file", boxFD, "f"), eROFS)
	b.want("rename", b.onTwo("path_rename", "f", "g"), eROFS)
	b.want("link", b.onTwo("path_link", "f", "g"), eROFS)
	if job.KindOf(b.trouble) != job.KindDenied {
		t.Errorf("trouble %v", b.trouble)
	}
	fd, e := b.open(boxFD, "f", openCreate, ro, 0)
	b.want("open what is there", e, eOK)
	if b.trouble != nil {
		t.Errorf("trouble %v after something went well", b.trouble)
	}
	b.want("set size", b.call("fd_filestat_set_size", fd, 0), eINVAL)
	b.want("times", b.call("fd_filestat_set_times", fd, 0, 0, modifiedNow), eROFS)
	if s, e := b.read(fd, 10); s != "text" || e != eOK || b.text("f") != "text" {
		t.Errorf("read %q, errno %d", s, e)
	}
}

// There are bounds on what is open and on what is written, holes and empty files included.
func TestFileLimits(t *testing.T) {
	t.Parallel()
	b := newBox(t, true)
	b.p.Files.Bytes = 40 << 10
	var open []uint64
	for {
		fd, e := b.open(boxFD, "f", openCreate, rw, 0)
		if e != eOK {
			b.want("the ninth", e, eMFILE)
			break
		}
		open = append(open, fd)
	}
	if len(open) != 8 || job.KindOf(b.trouble) != job.KindLimit || !strings.Contains(b.trouble.Error(), "limits.files") {
		t.Errorf("%d are open, trouble %v", len(open), b.trouble)
	}
	fd := open[0] // 36 KiB are left
	b.want("a hole", b.call("fd_filestat_set_size", fd, 1<<30), eDQUOT)
	b.want("room", b.call("fd_allocate", fd, 1<<40, 1), eDQUOT)
	b.mem().WriteUint32Le(atIovec, atData)
	b.mem().WriteUint32Le(atIovec+4, 1)
	b.want("a byte behind a hole", b.call("fd_pwrite", fd, atIovec, 1, 1<<30, atResult), eDQUOT)
	b.want("behind the end of everything", b.call("fd_pwrite", fd, atIovec, 1, 1<<63-1, atResult), eFBIG)
	b.want("and further", b.call("fd_pwrite", fd, atIovec, 1, 1<<63, atResult), eINVAL)
	total := 0
	for {
		n, e := b.write(fd, strings.Repeat("x", 1000))
		if e != eOK {
			b.want("the last", e, eDQUOT)
			break
		}
		total += int(n)
	}
	if total != 36000 || !strings.Contains(b.trouble.Error(), "limits.file_bytes") {
		t.Errorf("wrote %d bytes, trouble %v", total, b.trouble)
	}
	b.want("mkdir", b.on("path_create_directory", boxFD, "d"), eDQUOT)
	b.want("link", b.onTwo("path_link", "f", "g"), eDQUOT)
	b.p.Close()
	if !b.p.Pristine() {
		t.Error("files are open of a process that was closed")
	}
}

// Whoever exchanges files for links meanwhile does not lead the guest out.
func TestLinkRace(t *testing.T) {
	t.Parallel()
	b := newBox(t, true)
	if err := os.Mkdir(filepath.Join(b.dir, "real"), 0o755); err != nil {
		t.Fatal(err)
	}
	b.put("real/secret", "public")
	var stop atomic.Bool
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop.Store(true)
	wg.Go(func() { // d is a directory, then a link to the one above, and so on
		d, link, real := filepath.Join(b.dir, "d"), filepath.Join(b.dir, "link"), filepath.Join(b.dir, "real")
		for !stop.Load() {
			_ = os.Symlink("..", link)
			_ = os.Rename(link, d)
			_ = os.Remove(d)
			_ = os.Rename(real, d)
			_ = os.Rename(d, real)
		}
	})
	got := map[string]int{}
	for range 3000 {
		fd, e := b.open(boxFD, "d/secret", 0, ro, 0)
		if e != eOK {
			got[fmt.Sprint(e)]++
			continue
		}
		s, _ := b.read(fd, 10)
		if got[s]++; s != "public" {
			t.Fatalf("read %q", s)
		}
		b.want("close", b.call("fd_close", fd), eOK)
	}
	t.Logf("what came of it: %v", got)
}

// A program that looks at files before it reads its job is not taken for one that does the same for every job.
func TestFilesAreNoticed(t *testing.T) {
	t.Parallel()
	b := newBox(t, true)
	if b.p.Drew() || b.p.Acted() || !b.p.Pristine() {
		t.Error("something was noticed before anything happened")
	}
	b.open(boxFD, "none", 0, ro, 0)
	if !b.p.Drew() || b.p.Acted() || !b.p.Pristine() {
		t.Errorf("a look: drew %t, acted %t", b.p.Drew(), b.p.Acted())
	}
	b.on("path_create_directory", boxFD, "d")
	if !b.p.Acted() {
		t.Error("a change was not noticed")
	}
	b.call("fd_close", boxFD)
	if b.p.Pristine() {
		t.Error("a preopen was closed and nobody noticed")
	}
}

func FuzzFiles(f *testing.F) {
	f.Add([]byte("../secret"), uint32(0), uint64(rw), uint32(1))
	f.Add([]byte("a/b"), uint32(9), uint64(ro), uint32(0))
	f.Fuzz(func(t *testing.T, path []byte, how uint32, rights uint64, flags uint32) {
		b := newBox(t, true)
		if len(path) > 6000 || bytes.Contains(path, []byte("..")) && len(path) > 100 {
			return
		}
		fd, e := b.open(boxFD, string(path), uint64(how), rights, uint64(flags))
		if e == eOK {
			b.write(fd, "x")
			b.read(fd, 10)
		}
		b.on("path_create_directory", boxFD, string(path))
		b.on("path_unlink_file", boxFD, string(path))
		b.p.Close()
		if b.text("../secret") != "secret" {
			t.Error("the secret was changed")
		}
	})
}
