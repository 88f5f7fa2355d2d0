package backup

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/swapback/swapback/backup/internal/format"
	"github.com/swapback/swapback/backup/internal/pack"
	"github.com/swapback/swapback/backup/internal/store/storetest"
	"github.com/swapback/swapback/soak/heap"
)

// hostile is a repository in a folder with one good backup, which a test then
// does harm to. Beside it lies a file that nobody may touch.
type hostile struct {
	t       *testing.T
	dir     string // the repository
	victim  string
	content []byte
	b       Backup
	target  string
	hash    pack.Hash
	repo    format.ID
}

func newHostile(t *testing.T) *hostile {
	t.Helper()
	top := t.TempDir()
	h := &hostile{t: t, dir: filepath.Join(top, "repo"), victim: filepath.Join(top, "victim"), content: image(1, 8)}
	if err := os.WriteFile(h.victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := Init(t.Context(), h.dir, InitOptions{ChunkSize: testChunk})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	h.hash, h.repo = r.hash, r.id
	h.b = create(t, r, CreateOptions{}, source(t, "a", h.content))
	h.target = dirty(t, len(h.content))
	return h
}

func (h *hostile) path(name string) string { return filepath.Join(h.dir, name) }

func (h *hostile) manifest() string { return h.path("backups/" + h.b.ID) }

// write puts an object in place of one that may be there.
func (h *hostile) write(name string, content []byte) {
	h.t.Helper()
	h.clear(name)
	if err := os.WriteFile(h.path(name), content, 0o600); err != nil {
		h.t.Fatal(err)
	}
}

func (h *hostile) clear(name string) {
	h.t.Helper()
	if err := os.RemoveAll(h.path(name)); err != nil {
		h.t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(h.path(name)), 0o700); err != nil {
		h.t.Fatal(err)
	}
}

func (h *hostile) link(name, to string) {
	h.t.Helper()
	h.clear(name)
	if err := os.Symlink(to, h.path(name)); err != nil {
		h.t.Fatal(err)
	}
}

func (h *hostile) fifo(name string) {
	h.t.Helper()
	h.clear(name)
	if err := unix.Mkfifo(h.path(name), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

func (h *hostile) sparse(name string) {
	h.t.Helper()
	h.write(name, nil)
	if err := os.Truncate(h.path(name), 1<<40); err != nil {
		h.t.Fatal(err)
	}
}

// text writes a text object with that body.
func (h *hostile) text(name, kind, body string) {
	h.t.Helper()
	if len(body) > format.MaxText {
		h.t.Fatalf("the body has %d bytes", len(body))
	}
	h.write(name, textObject(kind, []byte(body)))
}

// backup writes the manifest anew with something changed.
func (h *hostile) backup(change func(b *Backup)) {
	h.t.Helper()
	b := h.b
	b.Volumes = append([]BackupVolume(nil), b.Volumes...)
	change(&b)
	object, err := format.EncodeText(format.TextBackup, b)
	if err != nil {
		h.t.Fatal(err)
	}
	h.write("backups/"+h.b.ID, object)
}

// firstPack is the name of a pack.
func (h *hostile) firstPack() string {
	h.t.Helper()
	packs, err := filepath.Glob(h.path("packs/*/*"))
	if err != nil || len(packs) == 0 {
		h.t.Fatalf("packs are %q, %v", packs, err)
	}
	name, _ := filepath.Rel(h.dir, packs[0])
	return name
}

// pack writes a pack of blobs, each with a right header, and returns where they
// are. A payload of nil stands for the plaintext itself.
func (h *hostile) pack(id byte, kind format.Kind, blobs ...blob) []format.Ref {
	h.t.Helper()
	packID := format.ID{id}
	p := format.AppendPackHeader(nil, format.PackHeader{Kind: kind, Pack: packID, Repository: h.repo})
	var refs []format.Ref
	for _, x := range blobs {
		r := format.Ref{Pack: packID, Offset: uint32(len(p)), Stored: uint32(len(x.payload)), Length: x.length, Kind: kind, Codec: x.codec, Hash: x.hash}
		p = append(append(p, header(r, x.payload)...), x.payload...)
		refs = append(refs, r)
	}
	h.write(pack.Name(packID), format.AppendDirectory(p, packID, uint32(len(p)), refs))
	return refs
}

func header(r format.Ref, payload []byte) []byte {
	p := make([]byte, format.BlobHeaderSize)
	format.PutBlobHeader(p, r, payload)
	return p
}

type blob struct {
	payload []byte
	codec   format.Codec
	length  uint32
	hash    format.Hash
}

func (h *hostile) rawBlob(plain []byte) blob {
	return blob{payload: plain, length: uint32(len(plain)), hash: h.hash(plain)}
}

// zstdOf compresses n zeroes into one frame.
func zstdOf(t *testing.T, n int64, o ...zstd.EOption) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, o...)
	if err != nil {
		t.Fatal(err)
	}
	zeroes := make([]byte, 1<<20)
	for ; n > 0; n -= int64(len(zeroes)) {
		if _, err := w.Write(zeroes); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// table makes the manifest's volume one whose only node has these entries.
func (h *hostile) table(size int64, entries ...format.Ref) {
	h.t.Helper()
	var node []byte
	for _, e := range entries {
		node = format.AppendEntry(node, e)
	}
	root := h.pack(0xee, format.KindNode, h.rawBlob(node))[0]
	h.volume(size, root)
}

func (h *hostile) volume(size int64, root format.Ref) {
	h.backup(func(b *Backup) {
		v := &b.Volumes[0]
		v.Size, v.DataBytes, v.ZeroBytes, v.ReusedBytes, v.ReadBytes, v.Table = size, size, 0, 0, 0, tableOf(root)
	})
}

// use does everything that reads the repository and returns all that it says.
func (h *hostile) use(ctx context.Context) string {
	var said []string
	say := func(what string, err error) {
		if err != nil {
			said = append(said, fmt.Sprintf("%s: %v", what, err))
		}
	}
	r, err := Open(ctx, h.dir, Secret{})
	if err != nil {
		return fmt.Sprintf("open: %v", err)
	}
	defer r.Close()
	list, err := r.List(ctx)
	say("list", err)
	for _, b := range list {
		if b.Damaged != "" {
			said = append(said, "list: "+b.Damaged)
		}
	}
	_, err = r.Latest(ctx, "uuid-a")
	say("latest", err)
	_, err = r.Restore(ctx, RestoreOptions{Backup: h.b.ID, Target: h.target, Parallel: 2, VerifyAfter: true})
	say("restore", err)
	_, err = r.Restore(ctx, RestoreOptions{Backup: h.b.ID, Target: h.target, Parallel: 2, VerifyAfter: true, Delta: true})
	say("restore the difference", err)
	_, err = r.Verify(ctx, VerifyOptions{Parallel: 2, StructureOnly: true})
	say("verify", err)
	_, err = r.Verify(ctx, VerifyOptions{Parallel: 2})
	say("verify", err)
	_, err = r.Create(ctx, []Source{{Path: h.target, Volume: h.b.Volumes[0].VolumeRef}}, CreateOptions{Parallel: 2})
	say("create", err)
	volume := h.b.Volumes[0].VolumeRef
	volume.Size = 0
	_, err = r.Create(ctx, []Source{{Path: h.target, Volume: volume, Changes: &Changes{Base: h.b.ID, Ranges: []Range{{0, 1}}}}}, CreateOptions{Parallel: 2})
	say("create over it", err)
	rep, err := r.Check(ctx)
	say("check", err)
	for _, f := range rep.Problems {
		said = append(said, f.Object+": "+f.Detail)
	}
	_, err = r.Stats(ctx)
	say("stats", err)
	if to, terr := initStore(ctx, storetest.NewMem(), InitOptions{ChunkSize: testChunk}); terr != nil {
		say("another repository", terr)
	} else {
		_, err = r.CopyTo(ctx, to, CopyOptions{Parallel: 2})
		say("copy", err)
	}
	healed, err := r.Heal(ctx, HealOptions{Parallel: 2, From: []string{h.target}, Scan: true})
	say("heal", err)
	for _, d := range healed.Left {
		said = append(said, "heal: "+d.Error())
	}
	_, err = r.Prune(ctx, PruneOptions{Repack: true})
	say("prune", err)
	_, _, err = r.Delete(ctx, h.b.ID)
	say("delete", err)
	return strings.Join(said, "\n")
}

// outside lists what is beside the repository, with content.
func (h *hostile) outside() string {
	var b strings.Builder
	err := filepath.WalkDir(filepath.Dir(h.dir), func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == h.dir {
			return fs.SkipDir
		}
		content, _ := os.ReadFile(path)
		fmt.Fprintf(&b, "%s %v %q\n", path, e.Type(), content)
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return b.String()
}

// maxHeap is what a hostile repository may make an operation hold. The largest
// text object has 16 MiB; measured are at most 61 MiB.
const maxHeap = 96 << 20

// maxSaid is how long all of its errors may be together.
const maxSaid = 16 << 10

// A repository that was made to do harm gives an error that names the object,
// within bounded memory, and nothing outside of it and the target is written.
func TestHostileRepository(t *testing.T) {
	long(t)
	outsideName := "../victim"
	for name, c := range map[string]struct {
		do    func(h *hostile)
		wants string // in what is said; empty when all goes well
	}{
		"config is endless":     {func(h *hostile) { h.sparse("config") }, "config"},
		"config is a link out":  {func(h *hostile) { h.link("config", outsideName) }, "config"},
		"config is a FIFO":      {func(h *hostile) { h.fifo("config") }, "config"},
		"config of huge chunks": {func(h *hostile) { h.config(func(c *config) { c.ChunkSize = 1 << 62 }) }, "config"},
		"config of tiny chunks": {func(h *hostile) { h.config(func(c *config) { c.ChunkSize = 1 }) }, "config"},
		"config has no id":      {func(h *hostile) { h.config(func(c *config) { c.ID = "../.." }) }, "config"},
		"config of millions of features": {func(h *hostile) {
			h.text("config", format.TextConfig, `{"hash":"sha256","encryption":"none","features":[`+strings.Repeat(`"",`, 5_000_000)+`""]}`)
		}, "config"},
		"config of a long feature": {func(h *hostile) {
			h.text("config", format.TextConfig, `{"features":["`+strings.Repeat("x", 16_000_000)+`"]}`)
		}, "features"},
		"config of a long time": {func(h *hostile) {
			h.text("config", format.TextConfig, `{"created":"`+strings.Repeat("\x7f", 16_000_000)+`"}`)
		}, "config"},
		"config of a long number": {func(h *hostile) {
			h.text("config", format.TextConfig, `{"chunk_size":`+strings.Repeat("9", 16_000_000)+`}`)
		}, "config"},
		"manifest is endless":    {func(h *hostile) { h.sparse("backups/" + h.b.ID) }, "BACKUP"},
		"manifest is a link out": {func(h *hostile) { h.link("backups/"+h.b.ID, "../"+outsideName) }, "BACKUP"},
		"manifest is a FIFO":     {func(h *hostile) { h.fifo("backups/" + h.b.ID) }, "BACKUP"},
		"manifest is a folder": {func(h *hostile) {
			h.clear("backups/" + h.b.ID)
			if err := os.Mkdir(h.manifest(), 0o700); err != nil {
				h.t.Fatal(err)
			}
		}, "no such backup"},
		"a million volumes": {func(h *hostile) {
			h.text("backups/"+h.b.ID, format.TextBackup, `{"volumes":[`+strings.Repeat("{},", 1_000_000)+`{}]}`)
		}, "BACKUP"},
		"millions of tags": {func(h *hostile) {
			h.text("backups/"+h.b.ID, format.TextBackup, `{"tags":[`+strings.Repeat(`"",`, 5_000_000)+`""]}`)
		}, "BACKUP"},
		"deep manifest": {func(h *hostile) {
			h.text("backups/"+h.b.ID, format.TextBackup, `{"job":`+strings.Repeat("[", 5_000)+strings.Repeat("]", 5_000)+`}`)
		}, "BACKUP"},
		"manifest of a long number": {func(h *hostile) {
			h.text("backups/"+h.b.ID, format.TextBackup, `{"volumes":[{"size":`+strings.Repeat("9", 16_000_000)+`}]}`)
		}, "BACKUP"},
		"volume of negative size": {func(h *hostile) { h.backup(func(b *Backup) { b.Volumes[0].Size = -1 }) }, "BACKUP"},
		"volume of endless size":  {func(h *hostile) { h.backup(func(b *Backup) { b.Volumes[0].Size = 1 << 62 }) }, "BACKUP"},
		"figures that overflow": {func(h *hostile) {
			h.backup(func(b *Backup) {
				v := b.Volumes[0]
				v.Size, v.DataBytes, v.ZeroBytes, v.ReusedBytes, v.ReadBytes, v.Table = format.MaxVolume, 0, format.MaxVolume, 0, 0, Table{}
				for range maxVolumes - 1 {
					b.Volumes = append(b.Volumes, v)
				}
			})
		}, "BACKUP"},
		"names for the terminal": {func(h *hostile) { h.backup(func(b *Backup) { b.Volumes[0].Name = "\x1b]0;root\a" }) }, "BACKUP"},
		"a name that is a path":  {func(h *hostile) { h.backup(func(b *Backup) { b.Volumes[0].Name = "../../victim" }) }, ""},
		"pack of a path": {func(h *hostile) {
			h.backup(func(b *Backup) { b.Volumes[0].Table.Pack = "../../../../victim/aaaaaaaaaaaaa" })
		}, "BACKUP"},
		"root of huge length": {func(h *hostile) { h.backup(func(b *Backup) { b.Volumes[0].Table.Length = 1 << 31 }) }, "BACKUP"},
		"root past the pack": {func(h *hostile) {
			h.backup(func(b *Backup) { b.Volumes[0].Table.Offset = format.MaxPack - 100_000 })
		}, "packs/"},
		"table past the volume": {func(h *hostile) {
			h.backup(func(b *Backup) { b.Volumes[0].Size = testChunk; b.Volumes[0].DataBytes = testChunk })
		}, "BACKUP"},
		"pack is endless":      {func(h *hostile) { h.sparse(h.firstPack()) }, "packs/"},
		"pack is a FIFO":       {func(h *hostile) { h.fifo(h.firstPack()) }, "packs/"},
		"pack is a link out":   {func(h *hostile) { h.link(h.firstPack(), "../../../victim") }, "packs/"},
		"packs are a link out": {func(h *hostile) { h.link("packs", "..") }, "packs"},
		"pack with a huge directory": {func(h *hostile) {
			// The footer is right, but states more entries than there can be.
			p := format.AppendDirectory(nil, format.ID{1}, format.PackHeaderSize, make([]format.Ref, 1000))
			h.write(h.firstPack(), p[len(p)-format.FooterSize:])
		}, "packs/"},
		"zstd bomb": {func(h *hostile) {
			bomb := zstdOf(h.t, 256<<20)
			refs := h.pack(0xbb, format.KindChunk, blob{payload: bomb, codec: format.Zstd, length: testChunk})
			h.table(testChunk, refs...)
			h.target = dirty(h.t, testChunk)
		}, "packs/bb/"},
		"zstd bomb with its size": {func(h *hostile) {
			bomb := zstdOf(h.t, 64<<20, zstd.WithSingleSegment(true))
			refs := h.pack(0xbb, format.KindChunk, blob{payload: bomb, codec: format.Zstd, length: testChunk})
			h.table(testChunk, refs...)
			h.target = dirty(h.t, testChunk)
		}, "packs/bb/"},
		"zstd with a huge window": {func(h *hostile) {
			// RFC 8878, 3.1.1.1: no content size, window descriptor 0xf8: 2^41 bytes.
			frame := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf8, 0x03, 0x00, 0x00, 0x41}
			refs := h.pack(0xbb, format.KindChunk, blob{payload: frame, codec: format.Zstd, length: testChunk})
			h.table(testChunk, refs...)
			h.target = dirty(h.t, testChunk)
		}, "packs/bb/"},
		"a node that names itself": {func(h *hostile) {
			// Of a volume with two levels: the root's entries name the root.
			self := format.Ref{Pack: format.ID{0xee}, Offset: format.PackHeaderSize, Kind: format.KindNode, Stored: format.MaxNode, Length: format.MaxNode}
			last := self
			last.Stored, last.Length = format.EntrySize, format.EntrySize
			h.table(testChunk*format.Fanout+1, self, last)
			h.target = dirty(h.t, testChunk*format.Fanout+1)
		}, "packs/ee/"},
		"one chunk without end": {func(h *hostile) {
			// A chunk inside another one's payload, which no directory lists, named
			// thousands of times by two nodes.
			inner := h.rawBlob(image(5, 1)[:testChunk])
			ref := format.Ref{Stored: inner.length, Length: inner.length, Kind: format.KindChunk, Hash: inner.hash}
			outer := append(header(ref, inner.payload), inner.payload...)
			at := h.pack(0xbb, format.KindChunk, h.rawBlob(outer))[0]
			ref.Pack, ref.Offset = at.Pack, at.Offset+format.BlobHeaderSize
			leaf := bytes.Repeat(format.AppendEntry(nil, ref), format.Fanout)
			below := h.pack(0xcc, format.KindNode, h.rawBlob(leaf))[0]
			root := h.pack(0xdd, format.KindNode, h.rawBlob(bytes.Repeat(format.AppendEntry(nil, below), 2)))[0]
			h.volume(2*testChunk*format.Fanout, root)
		}, "does not list the blob"},
		"lease is a link out":   {func(h *hostile) { h.link("leases/"+strings.Repeat("a", 32), "../../victim") }, "leases/aaa"},
		"leases are a link out": {func(h *hostile) { h.link("leases", "..") }, "leases"},
		"lock is a link out":    {func(h *hostile) { h.link("locks/gc", "../../victim") }, "locks/gc"},
		"tmp is a link out":     {func(h *hostile) { h.link("tmp", "..") }, "tmp"},
		"note of a path": {func(h *hostile) {
			h.text("gc/pending", format.TextPending, `{"packs":["../victim","packs/../../victim","config"],"leases":[]}`)
		}, ""},
		"note of millions of packs": {func(h *hostile) {
			h.text("gc/pending", format.TextPending, `{"packs":[`+strings.Repeat(`"",`, 5_000_000)+`""],"leases":[]}`)
		}, ""},
		"note is endless": {func(h *hostile) { h.sparse("gc/pending") }, ""},
		"strange names": {func(h *hostile) {
			for _, name := range []string{"backups/..a", "backups/ ", "backups/\x1b[2J", "packs/.hidden", "packs/zz/" + strings.Repeat("z", 32), "backups/20261123T101502Z-ZZZZZZZZ"} {
				h.write(name, []byte("x"))
			}
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHostile(t)
			c.do(h)
			h.harmless(c.wants)
		})
	}
}

// harmless uses the repository and checks that what is said has wants in it, or
// that nothing is said when wants is empty, that memory is bounded, and that
// nothing beside the repository was written.
func (h *hostile) harmless(wants string) {
	h.t.Helper()
	before, size := h.outside(), fileSize(h.t, h.target)
	var said string
	top := heap.Peak(func() { said = h.use(h.t.Context()) })
	h.t.Logf("at most %d MiB on the heap; said:\n%.2000s", top>>20, said)
	wants = strings.ReplaceAll(wants, "BACKUP", "backups/"+h.b.ID)
	if !strings.Contains(said, wants) || (wants == "") != (said == "") {
		h.t.Errorf("want %q", wants)
	}
	if len(said) > maxSaid {
		h.t.Errorf("%d bytes were said", len(said))
	}
	if top > maxHeap {
		h.t.Errorf("%d MiB lay on the heap", top>>20)
	}
	if after := h.outside(); after != before {
		h.t.Errorf("beside the repository there was\n%sand now is\n%s", before, after)
	}
	if after := fileSize(h.t, h.target); after != size {
		h.t.Errorf("the target had %d bytes and has %d", size, after)
	}
}

func (h *hostile) config(change func(c *config)) {
	h.t.Helper()
	object, err := os.ReadFile(h.path("config"))
	if err != nil {
		h.t.Fatal(err)
	}
	var c config
	if err := format.DecodeText(object, format.TextConfig, &c); err != nil {
		h.t.Fatal(err)
	}
	change(&c)
	if object, err = format.EncodeText(format.TextConfig, c); err != nil {
		h.t.Fatal(err)
	}
	h.write("config", object)
}

func fileSize(t *testing.T, path string) int64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}
