package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
)

// Client talks to swapbackd. It is safe for concurrent use and implements
// [Service], so that what works on a service works from afar too.
type Client struct {
	at      string // where the daemon is, for messages
	base    string // of its URLs
	http    *http.Client
	longest int64                    // bytes of an answer
	err     error                    // why nothing can be asked
	device  func(uuid string) string // this machine's device of a volume, see [Target]
	// refused makes an error of a connection that could not be made; nil: no more
	// is known about it.
	refused func(error) error
}

// maxAnswer bounds an answer. The longest are of a pool whose metadata fills its
// slots of 32 MiB: all its volumes, with their segments, are about 120 MiB.
const maxAnswer = 256 << 20

var _ Service = (*Client)(nil)

// NewClient returns a client for the daemon at a unix socket. An empty socket
// means the one in the environment ([SocketEnv]) or else [DefaultSocket].
// Nothing is connected before the first call.
func NewClient(socket string) *Client {
	if socket == "" {
		socket = os.Getenv(SocketEnv)
	}
	if socket == "" {
		socket = DefaultSocket
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	c := newClient(socket, "http://swapbackd", &http.Transport{DialContext: dial})
	c.refused = func(err error) error {
		return &Error{
			Code:    CodeUnavailable,
			Message: fmt.Sprintf("no swapbackd at %s: %v", socket, err),
			Remedy:  "start it (systemctl start swapbackd), or name its socket with --socket or " + SocketEnv,
		}
	}
	return c
}

func newClient(at, base string, t *http.Transport) *Client {
	// A connection for each request: on one that was kept, a request to the
	// next daemon would break, as if that had died under it.
	t.DisableKeepAlives = true
	return &Client{at: at, base: base, longest: maxAnswer, http: &http.Client{
		Transport: t,
		// A name such as ".." makes the server point to another path, which would
		// be another operation.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func (c *Client) Info(ctx context.Context) (out Info, err error) {
	return out, c.call(ctx, "GET", "/v1/info", nil, &out)
}

func (c *Client) Pools(ctx context.Context) (out []Pool, err error) {
	return out, c.call(ctx, "GET", "/v1/pools", nil, &out)
}

func (c *Client) Pool(ctx context.Context, pool string) (out Pool, err error) {
	return out, c.call(ctx, "GET", poolPath(pool), nil, &out)
}

func (c *Client) CreatePool(ctx context.Context, req CreatePoolRequest) (out Pool, err error) {
	return out, c.call(ctx, "POST", "/v1/pools", req, &out)
}

func (c *Client) DeletePool(ctx context.Context, pool string, force bool) error {
	return c.call(ctx, "DELETE", poolPath(pool)+forceQuery(force), nil, nil)
}

func (c *Client) CheckPool(ctx context.Context, pool string) (out CheckReport, err error) {
	return out, c.call(ctx, "POST", poolPath(pool)+"/check", nil, &out)
}

func (c *Client) RepairPool(ctx context.Context, pool string) (out CheckReport, err error) {
	return out, c.call(ctx, "POST", poolPath(pool)+"/repair", nil, &out)
}

func (c *Client) RejoinPool(ctx context.Context, pool string) (out Pool, err error) {
	return out, c.call(ctx, "POST", poolPath(pool)+"/rejoin", nil, &out)
}

func (c *Client) PoolMetadata(ctx context.Context, pool string) (out PoolMetadata, err error) {
	return out, c.call(ctx, "GET", poolPath(pool)+"/metadata", nil, &out)
}

func (c *Client) Volumes(ctx context.Context, pool string) (out []Volume, err error) {
	return out, c.call(ctx, "GET", "/v1/volumes?pool="+url.QueryEscape(pool), nil, &out)
}

func (c *Client) Volume(ctx context.Context, volume string) (out Volume, err error) {
	return out, c.call(ctx, "GET", volumePath(volume), nil, &out)
}

func (c *Client) CreateVolume(ctx context.Context, req CreateVolumeRequest) (out Volume, err error) {
	return out, c.call(ctx, "POST", "/v1/volumes", req, &out)
}

func (c *Client) DeleteVolume(ctx context.Context, volume string, force bool) error {
	return c.call(ctx, "DELETE", volumePath(volume)+forceQuery(force), nil, nil)
}

func (c *Client) GrowVolume(ctx context.Context, volume string, size int64) (out Volume, err error) {
	return out, c.call(ctx, "POST", volumePath(volume)+"/grow", GrowRequest{Size: size}, &out)
}

func (c *Client) Attach(ctx context.Context, volume string, req AttachRequest) (out Volume, err error) {
	return out, c.call(ctx, "POST", volumePath(volume)+"/attach", req, &out)
}

func (c *Client) Detach(ctx context.Context, volume string) (out Volume, err error) {
	return out, c.call(ctx, "POST", volumePath(volume)+"/detach", nil, &out)
}

func (c *Client) Quarantine(ctx context.Context, volume string, req QuarantineRequest) (out Volume, err error) {
	return out, c.call(ctx, "POST", volumePath(volume)+"/quarantine", req, &out)
}

func (c *Client) ReleaseQuarantine(ctx context.Context, volume string) (out Volume, err error) {
	return out, c.call(ctx, "DELETE", volumePath(volume)+"/quarantine", nil, &out)
}

func (c *Client) SetDescendsFrom(ctx context.Context, volume string, req DescendsRequest) (out Volume, err error) {
	return out, c.call(ctx, "PUT", volumePath(volume)+"/descends-from", req, &out)
}

func (c *Client) Holders(ctx context.Context, volume string) (out []Holder, err error) {
	return out, c.call(ctx, "GET", volumePath(volume)+"/holders", nil, &out)
}

func (c *Client) Swap(ctx context.Context, req SwapRequest) (out SwapResult, err error) {
	return out, c.call(ctx, "POST", "/v1/swaps", req, &out)
}

// OpenSnapshot implements [Service]. The snapshot ends when the returned
// function is called, when ctx ends, or when this process does.
func (c *Client) OpenSnapshot(ctx context.Context, req SnapshotRequest) (Snapshot, func(context.Context) error, error) {
	var snap Snapshot
	ctx, cancel := context.WithCancel(ctx)
	resp, err := c.send(ctx, "POST", "/v1/snapshots", req)
	if err != nil {
		cancel()
		return snap, nil, err
	}
	if err := json.NewDecoder(resp.Body).Decode(&snap); err != nil {
		cancel()
		resp.Body.Close()
		return snap, nil, c.wentAway("POST", "/v1/snapshots", err)
	}
	c.here(&snap)
	return snap, func(context.Context) error {
		cancel()
		return resp.Body.Close()
	}, nil
}

func poolPath(pool string) string     { return "/v1/pools/" + url.PathEscape(pool) }
func volumePath(volume string) string { return "/v1/volumes/" + url.PathEscape(volume) }

func forceQuery(force bool) string {
	if force {
		return "?force=true"
	}
	return ""
}

// call sends in as JSON and decodes the answer into out; either may be nil.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	resp, err := c.send(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, resp.Body)
	} else {
		err = json.NewDecoder(resp.Body).Decode(out)
	}
	if err != nil {
		return c.wentAway(method, path, err)
	}
	c.here(out)
	return nil
}

// wentAway is for an answer that did not come, or not whole, or has no end: nobody can say from
// here whether the daemon has done what it was asked for.
func (c *Client) wentAway(method, path string, err error) error {
	if tooLong := (*http.MaxBytesError)(nil); errors.As(err, &tooLong) {
		return &Error{
			Code:    CodeInternal,
			Message: fmt.Sprintf("what answered %s %s at %s says more than %d bytes", method, path, c.at, tooLong.Limit),
			Remedy:  "see whether it is swapbackd that listens there",
		}
	}
	return &Error{
		Code:    CodeUnavailable,
		Message: fmt.Sprintf("swapbackd at %s went away before it had answered %s %s: %v", c.at, method, path, err),
		Remedy:  "when it answers again, look whether it was done",
	}
}

// send makes the request; an answer of 400 or more comes back as an [*Error].
func (c *Client) send(ctx context.Context, method, path string, in any) (*http.Response, error) {
	if c.err != nil {
		return nil, c.err
	}
	var payload io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		payload = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, payload)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err := c.notMade(err); err != nil {
			return nil, err
		}
		return nil, c.wentAway(method, path, err)
	}
	if resp.StatusCode < 300 {
		resp.Body = http.MaxBytesReader(nil, resp.Body, c.longest)
		return resp, nil
	}
	defer resp.Body.Close()
	if resp.StatusCode < 400 {
		return nil, &Error{Status: http.StatusNotFound, Code: CodeNotFound, Message: fmt.Sprintf("%s %s: that is no name", method, path)}
	}
	return nil, decodeError(resp)
}

// notMade returns what to say of a connection that was not made, and so of a
// request that was not sent; nil when it may have been.
func (c *Client) notMade(err error) error {
	var ne *net.OpError
	if errors.As(err, &ne) && ne.Op == "dial" {
		return c.refused(ne.Err)
	}
	return c.notTrusted(err)
}

// decodeError reads an [Error]. What a router or a validator answers has other
// fields ("title", "detail", "errors"); they become one too.
func decodeError(resp *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("swapbackd answered %s and then broke off: %w", resp.Status, err)
	}
	var e struct {
		Error
		Title  string `json:"title"`
		Detail string `json:"detail"`
		Errors []struct {
			Message  string `json:"message"`
			Location string `json:"location"`
		} `json:"errors"`
	}
	if json.Unmarshal(b, &e) != nil {
		code := CodeInternal
		if resp.StatusCode == http.StatusNotFound { // of the router: an empty name
			code = CodeNotFound
		}
		return &Error{Status: resp.StatusCode, Code: code, Message: fmt.Sprintf("swapbackd answered %s: %s", resp.Status, bytes.TrimSpace(b))}
	}
	if e.Code == "" {
		e.Code = CodeInvalid
		e.Message = e.Title + ": " + e.Detail
		for _, d := range e.Errors {
			e.Message += "\n  " + d.Location + ": " + d.Message
		}
	}
	e.Status = resp.StatusCode
	return &e.Error
}
