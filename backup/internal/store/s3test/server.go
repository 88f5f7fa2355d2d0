// Package s3test runs a real S3 server for tests, and a bad network before it.
package s3test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"golang.org/x/sys/unix"
)

// Access and Secret are the keys of every Server.
const (
	Access = "swapback"
	Secret = "swapback-test"
	Bucket = "backups"
)

// Creds are the keys for a client.
func Creds() *credentials.Credentials { return credentials.NewStaticV4(Access, Secret, "") }

// Server is a process that serves a folder by S3.
type Server struct {
	Addr string // HOST:PORT
	Dir  string
}

// Start runs a server with one empty bucket. It ends with the test.
func Start(t testing.TB) *Server {
	t.Helper()
	program := build(t)
	s := &Server{Dir: t.TempDir()}
	if err := os.Mkdir(filepath.Join(s.Dir, Bucket), 0o700); err != nil {
		t.Fatal(err)
	}
	s.Addr = freePort(t)
	var log bytes.Buffer
	cmd := exec.Command(program, "--port", s.Addr, "--access", Access, "--secret", Secret, "--quiet", "posix", s.Dir)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() && log.Len() > 0 {
			t.Logf("the server said:\n%s", log.String())
		}
	})
	s.await(t, cmd, &log)
	return s
}

func (s *Server) await(t testing.TB, cmd *exec.Cmd, log *bytes.Buffer) {
	t.Helper()
	c, err := minio.New(s.Addr, &minio.Options{Creds: Creds(), Region: "us-east-1", MaxRetries: 1})
	if err != nil {
		t.Fatal(err)
	}
	var there bool
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		there, err = c.BucketExists(ctx, Bucket)
		cancel()
		if there {
			return
		}
		if cmd.ProcessState != nil {
			break
		}
	}
	t.Fatalf("no server at %s: bucket is there: %v, %v", s.Addr, there, err)
}

func freePort(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// Location is where a repository may lie on the server, or on what stands before it
// at another address.
func (s *Server) Location(addr, prefix string) string {
	if addr == "" {
		addr = s.Addr
	}
	return fmt.Sprintf("s3://%s/%s?endpoint=http://%s&region=us-east-1", Bucket, prefix, addr)
}

// build makes the server's program, once, from the module of the project's tools.
func build(t testing.TB) string {
	t.Helper()
	root := projectRoot(t)
	dir := filepath.Join(root, "build", "tools")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "versitygw")
	if _, err := os.Stat(program); err == nil {
		return program
	}
	cmd := exec.Command("go", "build", "-trimpath", "-o", program, "github.com/versity/versitygw/cmd/versitygw")
	cmd.Dir = filepath.Join(root, "ci", "testtools")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the S3 server: %v\n%s", err, out)
	}
	return program
}

func projectRoot(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if f, err := os.Open(filepath.Join(dir, "go.mod")); err == nil {
			line, _ := bufio.NewReader(f).ReadString('\n')
			f.Close()
			if strings.TrimSpace(line) == "module github.com/swapback/swapback" {
				return dir
			}
		}
		up := filepath.Dir(dir)
		if up == dir {
			t.Fatal("no go.mod of the project above the test")
		}
		dir = up
	}
}
