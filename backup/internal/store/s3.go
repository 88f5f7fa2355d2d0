package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// S3 keeps objects in a bucket, below a prefix. It asks of the server what all S3
// servers do since 2020: whatever was written or deleted is seen by everybody at
// once. Conditional writes (If-None-Match) are used where the server knows them.
//
// There are no file locks in a bucket. What is held is an object that its holder
// writes anew every few seconds, and that counts as held until it has not been
// written for [HoldTime], by the clock of the server alone. See s3_hold.go.
type S3 struct {
	client   *minio.Client
	core     minio.Core
	bucket   string
	prefix   string // empty, or with a slash at its end
	location string
	clock    *serverClock
	o        S3Options
}

// S3Options are for tests; the zero value is right for all else.
type S3Options struct {
	HoldTime time.Duration // default HoldTime
	Attempts int           // of a request, default 8
	Creds    *credentials.Credentials
}

const (
	// partSize is what an upload in parts is cut into; packs are four of them.
	partSize = 8 << 20
	// uploadThreads is how many parts of an object are on their way at once.
	uploadThreads = 4
	// maxObject bounds what a Writer takes: it is in memory until Commit.
	maxObject = 256 << 20
	// staleUpload is how old an upload in parts has to be that Clean gives up:
	// no Commit takes nearly as long.
	staleUpload = 24 * time.Hour
	// answerTime bounds how long a server may think before it answers at all.
	answerTime = 60 * time.Second
	// takeBackTime bounds what is done about a request that was called off.
	takeBackTime = 5 * time.Second
)

// S3Location is what a location says, see [ParseS3].
type S3Location struct {
	Bucket, Prefix string
	Endpoint       *url.URL // without a path
	Region         string
}

// ParseS3 reads s3://BUCKET/PREFIX?endpoint=URL&region=NAME. Without endpoint the
// environment's AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL counts, and then Amazon's.
func ParseS3(location string, getenv func(string) string) (l S3Location, err error) {
	bad := func(format string, args ...any) (S3Location, error) {
		return l, fmt.Errorf("%w: %s", ErrScheme, fmt.Sprintf(format, args...))
	}
	u, err := url.Parse(location)
	if err != nil || u.Scheme != "s3" {
		return bad("it is not s3://BUCKET/PREFIX")
	}
	if u.User != nil {
		return bad("keys do not belong into a location, where everybody sees them; use AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials")
	}
	l.Bucket, l.Prefix = u.Host, strings.Trim(u.Path, "/")
	if l.Bucket == "" || u.Port() != "" {
		return bad("it names no bucket")
	}
	if l.Prefix != "" && !ValidName(l.Prefix) {
		return bad("prefix %.80q has other characters than letters, digits, '.', '_', '-' and '/'", l.Prefix)
	}
	for key, values := range u.Query() {
		if key != "endpoint" && key != "region" || len(values) != 1 {
			return bad("%.40q is not endpoint or region, once", key)
		}
	}
	endpoint := u.Query().Get("endpoint")
	for _, name := range []string{"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"} {
		if endpoint == "" {
			endpoint = getenv(name)
		}
	}
	if endpoint == "" {
		endpoint = "https://s3.amazonaws.com"
	}
	if l.Endpoint, err = url.Parse(endpoint); err != nil || l.Endpoint.Host == "" || l.Endpoint.User != nil ||
		l.Endpoint.Scheme != "http" && l.Endpoint.Scheme != "https" || strings.Trim(l.Endpoint.Path, "/") != "" {
		return bad("endpoint %.80q is not https://HOST or http://HOST:PORT", endpoint)
	}
	for _, region := range []string{u.Query().Get("region"), getenv("AWS_REGION"), getenv("AWS_DEFAULT_REGION")} {
		if l.Region == "" {
			l.Region = region
		}
	}
	return l, nil
}

// OpenS3 opens the bucket and prefix that a location names, see [ParseS3]. Keys
// come from the environment, from ~/.aws/credentials or from the machine's role.
// Nothing is asked of the server yet.
func OpenS3(location string, o S3Options) (*S3, error) {
	l, err := ParseS3(location, os.Getenv)
	if err != nil {
		return nil, err
	}
	if o.HoldTime == 0 {
		o.HoldTime = HoldTime
	}
	if o.Attempts == 0 {
		o.Attempts = 8
	}
	if o.Creds == nil {
		o.Creds = credentials.NewChainCredentials([]credentials.Provider{
			&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}, &credentials.IAM{},
		})
	}
	transport, err := minio.DefaultTransport(l.Endpoint.Scheme == "https")
	if err != nil {
		return nil, err
	}
	transport.ResponseHeaderTimeout = answerTime
	clock := &serverClock{next: transport}
	c, err := minio.New(l.Endpoint.Host, &minio.Options{
		Creds: o.Creds, Secure: l.Endpoint.Scheme == "https", Region: l.Region, Transport: clock, MaxRetries: o.Attempts,
	})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", location, err)
	}
	s := &S3{client: c, core: minio.Core{Client: c}, bucket: l.Bucket, clock: clock, o: o, location: "s3://" + l.Bucket}
	if l.Prefix != "" {
		s.prefix = l.Prefix + "/"
		s.location += "/" + l.Prefix
	}
	return s, nil
}

// serverClock knows the server's time from what it answers.
type serverClock struct {
	next *http.Transport
	seen atomic.Pointer[serverTime]
}

type serverTime struct {
	server time.Time
	here   time.Time // with a monotonic reading
}

func (c *serverClock) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.next.RoundTrip(r)
	if err == nil {
		if t, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
			c.seen.Store(&serverTime{t, time.Now()})
		}
	}
	return resp, err
}

// now is the server's time; ok is false before its first answer.
func (c *serverClock) now() (t time.Time, ok bool) {
	s := c.seen.Load()
	if s == nil {
		return t, false
	}
	return s.server.Add(time.Since(s.here)), true
}

// Location is the bucket's URL, without endpoint.
func (s *S3) Location() string { return s.location }

// Close frees idle connections.
func (s *S3) Close() error {
	s.clock.next.CloseIdleConnections()
	return nil
}

func (s *S3) key(name string) string { return s.prefix + name }

// failed gives an error of the server the meaning that callers look for.
func (s *S3) failed(what, name string, err error) error {
	if err == nil {
		return nil
	}
	at := what + " " + name + " in " + s.location
	switch resp := minio.ToErrorResponse(err); resp.Code {
	case minio.NoSuchKey:
		return fmt.Errorf("%s: %w", at, ErrNotExist)
	case minio.PreconditionFailed:
		return fmt.Errorf("%s: %w", at, ErrExist)
	case "InvalidRange":
		return fmt.Errorf("%s: %w", at, ErrShort)
	case minio.NoSuchBucket:
		return fmt.Errorf("%s: there is no such bucket: %w", at, ErrNotExist)
	case minio.AccessDenied:
		return fmt.Errorf("%s: %w: %w", at, os.ErrPermission, err)
	}
	return fmt.Errorf("%s: %w", at, err)
}

// Foreign returns what is below the prefix, and nothing of a bucket beside it.
func (s *S3) Foreign(ctx context.Context) ([]string, error) {
	var names []string
	err := s.again(ctx, func() error {
		names = nil
		for o := range s.client.ListObjectsIter(ctx, s.bucket, minio.ListObjectsOptions{Prefix: s.prefix, MaxKeys: 10}) {
			if o.Err != nil {
				return s.failed("list", ".", o.Err)
			}
			switch name := strings.TrimSuffix(strings.TrimPrefix(o.Key, s.prefix), "/"); name {
			case "", "locks", "keys":
			default:
				names = append(names, name)
			}
		}
		return ctx.Err()
	})
	return names, err
}

// again repeats what the client library does not: requests whose answer breaks off.
func (s *S3) again(ctx context.Context, do func() error) error {
	for attempt := 1; ; attempt++ {
		err := do()
		if err == nil || !temporary(err) || attempt >= s.o.Attempts || ctx.Err() != nil {
			return err
		}
		if err := pause(ctx, attempt); err != nil {
			return err
		}
	}
}

// temporary tells whether an error is of the network, or of a server that can't
// just now.
func temporary(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	var resp minio.ErrorResponse
	if errors.As(err, &resp) {
		// A conflict is with somebody's request of the same time: another conditional
		// write, or on servers that keep folders the removal of one that was empty.
		return resp.StatusCode >= 500 || resp.StatusCode == http.StatusConflict
	}
	var net net.Error
	return errors.Is(err, errBroken) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.As(err, &net)
}

// pause waits longer from attempt to attempt, up to two seconds.
func pause(ctx context.Context, attempt int) error {
	wait := min(2*time.Second, 20*time.Millisecond<<min(attempt, 10))
	select {
	case <-time.After(wait/2 + rand.N(wait)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Create begins an object, which is in memory until Commit sends it.
func (s *S3) Create(ctx context.Context, name string, mode Mode) (Writer, error) {
	if err := checkName("create", name); err != nil {
		return nil, err
	}
	return &s3Writer{s: s, name: name, mode: mode}, nil
}

type s3Writer struct {
	s    *S3
	name string
	mode Mode
	buf  bytes.Buffer
	done bool
}

func (w *s3Writer) Write(p []byte) (int, error) {
	if w.buf.Len()+len(p) > maxObject {
		return 0, fmt.Errorf("write %s in %s: it has more than %d bytes", w.name, w.s.location, maxObject)
	}
	return w.buf.Write(p)
}

func (w *s3Writer) Commit(ctx context.Context) error {
	if w.done {
		return fmt.Errorf("commit %s in %s: it has ended", w.name, w.s.location)
	}
	defer w.Abort()
	return w.s.put(ctx, w.name, w.mode, w.buf.Bytes(), nil)
}

func (w *s3Writer) Abort() {
	w.done = true
	w.buf = bytes.Buffer{}
}

// metaWriter tells one upload from another, for when the answer to one is lost.
const metaWriter = "Writer"

// put sends an object. When it is Exclusive and the name is taken it fails with
// ErrExist, unless it was this very call that took it and did not hear of it.
func (s *S3) put(ctx context.Context, name string, mode Mode, body []byte, meta map[string]string) error {
	opts := minio.PutObjectOptions{PartSize: partSize, NumThreads: uploadThreads, ContentType: "application/octet-stream",
		UserMetadata: map[string]string{metaWriter: uuid.NewString()}}
	for k, v := range meta {
		opts.UserMetadata[k] = v
	}
	if mode == Exclusive {
		if _, err := s.stat(ctx, name); err == nil {
			return fmt.Errorf("create %s in %s: %w", name, s.location, ErrExist)
		} else if !errors.Is(err, ErrNotExist) {
			return err
		}
		opts.SetMatchETagExcept("*")
	}
	err := s.again(ctx, func() error {
		_, err := s.client.PutObject(ctx, s.bucket, s.key(name), bytes.NewReader(body), int64(len(body)), opts)
		err = s.failed("write", name, err)
		if errors.Is(err, ErrExist) {
			if o, serr := s.stat(ctx, name); serr == nil && o.UserMetadata[metaWriter] == opts.UserMetadata[metaWriter] {
				return nil
			}
		}
		return err
	})
	if err != nil && mode == Exclusive && ctx.Err() != nil {
		s.takeBack(ctx, name, opts.UserMetadata[metaWriter])
	}
	return err
}

// takeBack removes an object that a request made of which the answer was not waited
// for. What comes to the server only later stays.
func (s *S3) takeBack(ctx context.Context, name, writer string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), takeBackTime)
	defer cancel()
	if o, err := s.stat(ctx, name); err == nil && o.UserMetadata[metaWriter] == writer {
		_ = s.Delete(ctx, name)
	}
}

func (s *S3) stat(ctx context.Context, name string) (minio.ObjectInfo, error) {
	var o minio.ObjectInfo
	err := s.again(ctx, func() (err error) {
		o, err = s.client.StatObject(ctx, s.bucket, s.key(name), minio.StatObjectOptions{})
		return s.failed("stat", name, err)
	})
	return o, err
}

// ReadAt asks for a range. A connection that breaks in the middle of the answer is
// tried again for the rest.
func (s *S3) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if err := checkName("read", name); err != nil {
		return err
	}
	if len(p) == 0 {
		return ctx.Err()
	}
	want, at := len(p), off
	err := s.again(ctx, func() error {
		n, err := s.read(ctx, name, p, off)
		p, off = p[n:], off+int64(n)
		return err
	})
	if err != nil {
		return fmt.Errorf("read %d bytes at %d of %s in %s: %w", want, at, name, s.location, err)
	}
	return nil
}

// errBroken is an answer that ended too early although the object is longer.
var errBroken = errors.New("connection lost")

func (s *S3) read(ctx context.Context, name string, p []byte, off int64) (int, error) {
	var opts minio.GetObjectOptions
	if err := opts.SetRange(off, off+int64(len(p))-1); err != nil {
		return 0, err
	}
	body, info, _, err := s.core.GetObject(ctx, s.bucket, s.key(name), opts)
	if err != nil {
		return 0, s.failed("read", name, err)
	}
	defer body.Close()
	n, err := io.ReadFull(body, p)
	switch {
	case err == nil:
		return n, nil
	case info.Size < int64(len(p)) && int64(n) == info.Size: // of the answer
		return 0, ErrShort
	default:
		return n, fmt.Errorf("%w: %w", errBroken, err)
	}
}

// Size asks for the object's length.
func (s *S3) Size(ctx context.Context, name string) (int64, error) {
	if err := checkName("stat", name); err != nil {
		return 0, err
	}
	o, err := s.stat(ctx, name)
	return o.Size, err
}

// List asks for all names below dir, a thousand at a time.
func (s *S3) List(ctx context.Context, dir string) ([]Info, error) {
	if err := checkName("list", dir); err != nil {
		return nil, err
	}
	var infos []Info
	err := s.again(ctx, func() error {
		infos = nil
		for o := range s.client.ListObjectsIter(ctx, s.bucket, minio.ListObjectsOptions{Prefix: s.key(dir) + "/", Recursive: true}) {
			if o.Err != nil {
				return s.failed("list", dir, o.Err)
			}
			if name := strings.TrimPrefix(o.Key, s.prefix); ValidName(name) && path.Clean(name) == name {
				infos = append(infos, Info{Name: name, Size: o.Size})
			}
		}
		return ctx.Err()
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(infos, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	return infos, nil
}

// Delete removes up to a thousand objects with one request.
func (s *S3) Delete(ctx context.Context, names ...string) error {
	for _, name := range names {
		if err := checkName("delete", name); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil || len(names) == 0 {
		return err
	}
	if len(names) == 1 {
		err := s.client.RemoveObject(ctx, s.bucket, s.key(names[0]), minio.RemoveObjectOptions{})
		if err = s.failed("delete", names[0], err); errors.Is(err, ErrNotExist) {
			return nil
		}
		return err
	}
	return s.again(ctx, func() error { return s.deleteMany(ctx, names) })
}

func (s *S3) deleteMany(ctx context.Context, names []string) error {
	objects := make(chan minio.ObjectInfo)
	go func() {
		defer close(objects)
		for _, name := range names {
			select {
			case objects <- minio.ObjectInfo{Key: s.key(name)}:
			case <-ctx.Done():
				return
			}
		}
	}()
	var errs []error
	for e := range s.client.RemoveObjects(ctx, s.bucket, objects, minio.RemoveObjectsOptions{}) {
		if err := s.failed("delete", strings.TrimPrefix(e.ObjectName, s.prefix), e.Err); !errors.Is(err, ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, ctx.Err())...)
}

// Clean gives up uploads in parts that were begun a day ago. What it frees it can't
// know.
func (s *S3) Clean(ctx context.Context) (bytes int64, err error) {
	return 0, s.again(ctx, func() error {
		for u := range s.client.ListIncompleteUploads(ctx, s.bucket, s.prefix, true) {
			if u.Err != nil {
				return s.failed("list unfinished uploads", ".", u.Err)
			}
			if now, ok := s.clock.now(); !ok || now.Sub(u.Initiated) < staleUpload {
				continue
			}
			if err := s.client.RemoveIncompleteUpload(ctx, s.bucket, u.Key); err != nil {
				return s.failed("give up the upload of", strings.TrimPrefix(u.Key, s.prefix), err)
			}
		}
		return ctx.Err()
	})
}
