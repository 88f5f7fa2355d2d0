package backup

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"

	"github.com/swapback/swapback/backup/internal/store"
	"github.com/swapback/swapback/backup/internal/store/s3test"
)

// another opens a store once more, as another process would.
type another func(t *testing.T) store.Store

func folderStore(t *testing.T) another {
	dir := t.TempDir()
	return func(t *testing.T) store.Store {
		t.Helper()
		f, err := store.OpenFolder(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
}

// bucketStore is a real S3 server behind a network in which every so-manieth request
// comes to harm; 0 for none.
func bucketStore(t *testing.T, every int) another {
	server := s3test.Start(t)
	faults := []s3test.Fault{s3test.Busy, s3test.Cut, s3test.LostReply, s3test.HalfReply}
	proxy := s3test.NewProxy(t, server, func(n int, _ *http.Request) s3test.Fault {
		if every == 0 || n%every != 0 {
			return s3test.None
		}
		return faults[n/every%len(faults)]
	})
	return func(t *testing.T) store.Store {
		t.Helper()
		s, err := store.OpenS3(server.Location(proxy.Addr, "r"), store.S3Options{Creds: s3test.Creds()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
}

// Writers, removers, a prune that moves what is needed, a heal, a verification and a
// check, all at once and each as a process of its own: none of them fails, and what is
// left is exactly what was not deleted.
func TestAllTogether(t *testing.T) {
	for name, make := range map[string]func(t *testing.T) another{
		"folder":               folderStore,
		"bucket":               func(t *testing.T) another { return bucketStore(t, 0) },
		"bucket, lost answers": func(t *testing.T) another { return bucketStore(t, 11) },
	} {
		t.Run(name, func(t *testing.T) {
			if name != "folder" {
				long(t)
			}
			together(t, make(t))
		})
	}
}

func together(t *testing.T, open another) {
	r, err := initStore(t.Context(), open(t), InitOptions{ChunkSize: testChunk})
	if err != nil {
		t.Fatal(err)
	}
	r.packSize = testPack
	process := func() *Repository {
		t.Helper()
		r, err := openStore(context.Background(), open(t), Secret{})
		if err != nil {
			t.Fatal(err)
		}
		r.packSize = testPack
		return r
	}
	var mu sync.Mutex
	want := images{}
	var writers, others sync.WaitGroup
	done := make(chan struct{})
	base := image(1, 14)
	for i := range 2 {
		w := &togetherWriter{r: process(), name: fmt.Sprintf("v%d", i), target: dirty(t, len(base)), rnd: rand.New(rand.NewPCG(uint64(i), 5))}
		content := base
		for j := range 6 {
			content = change(content, uint64(i*10+j))
			w.sources, w.contents = append(w.sources, source(t, w.name, content)), append(w.contents, content)
		}
		writers.Go(func() {
			if err := w.run(func(f func(images)) { mu.Lock(); defer mu.Unlock(); f(want) }); err != nil {
				t.Errorf("%s: %v", w.name, err)
			}
		})
	}
	for name, f := range map[string]func(r *Repository) error{
		"prune": func(r *Repository) error {
			_, err := r.Prune(context.Background(), PruneOptions{Repack: true})
			return err
		},
		"verify": func(r *Repository) error {
			rep, err := r.Verify(context.Background(), VerifyOptions{Parallel: 2})
			if err == nil && len(rep.Other) > 0 {
				err = errors.New(rep.Other[0])
			}
			return err
		},
		"heal": func(r *Repository) error {
			rep, err := r.Heal(context.Background(), HealOptions{Parallel: 2})
			if err == nil && rep.Bad.Sum() > 0 {
				err = fmt.Errorf("something is bad: %+v", rep)
			}
			return err
		},
		"check": func(r *Repository) error {
			rep, err := r.Check(context.Background())
			if err == nil && len(rep.Problems) > 0 {
				err = fmt.Errorf("problems: %+v", rep.Problems)
			}
			return err
		},
	} {
		r := process()
		others.Go(func() {
			for {
				if err := f(r); err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	writers.Wait()
	close(done)
	others.Wait()
	fullCheck(t, open(t), want)
	if _, err := r.Prune(t.Context(), PruneOptions{Repack: true}); err != nil {
		t.Error(err)
	}
	fullCheck(t, open(t), want)
	if rep, err := r.Check(t.Context()); err != nil || len(rep.Problems)+len(rep.Notes) > 0 {
		t.Errorf("check: %+v, %v", rep, err)
	}
	if st, err := r.Stats(t.Context()); err != nil || st.UnusedBytes+st.UnusedPackBytes > 0 {
		t.Errorf("unused: %+v, %v", st, err)
	}
}

// togetherWriter takes backups of a volume, restores some of them and deletes others.
type togetherWriter struct {
	r        *Repository
	name     string
	sources  []Source
	contents [][]byte
	target   string
	rnd      *rand.Rand
}

func (w *togetherWriter) run(note func(func(images))) error {
	ctx := context.Background()
	var mine []string
	for j, s := range w.sources {
		b, err := w.r.Create(ctx, []Source{s}, CreateOptions{Parallel: 2})
		if err != nil {
			return err
		}
		note(func(want images) { want[b.ID] = map[string][]byte{w.name: w.contents[j]} })
		mine = append(mine, b.ID)
		k := w.rnd.IntN(len(mine))
		if _, err := w.r.Restore(ctx, RestoreOptions{Backup: mine[k], Target: w.target, VerifyAfter: true, Parallel: 2}); err != nil {
			return err
		}
		if j%2 == 1 {
			note(func(want images) { delete(want, mine[k]) })
			if _, _, err := w.r.Delete(ctx, mine[k]); err != nil {
				return err
			}
			mine = append(mine[:k], mine[k+1:]...)
		}
	}
	return nil
}
