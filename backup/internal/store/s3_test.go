package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/minio/minio-go/v7"
	"golang.org/x/sys/unix"
)

func TestParseS3(t *testing.T) {
	env := map[string]string{}
	getenv := func(name string) string { return env[name] }
	l, err := ParseS3("s3://bucket/a/b/?endpoint=http://127.0.0.1:7070&region=eu-1", getenv)
	if err != nil || l.Bucket != "bucket" || l.Prefix != "a/b" || l.Endpoint.String() != "http://127.0.0.1:7070" || l.Region != "eu-1" {
		t.Errorf("%+v, %v", l, err)
	}
	env["AWS_ENDPOINT_URL"], env["AWS_REGION"] = "https://s3.example.org", "x"
	if l, err = ParseS3("s3://bucket", getenv); err != nil || l.Prefix != "" || l.Endpoint.Host != "s3.example.org" || l.Region != "x" {
		t.Errorf("%+v, %v", l, err)
	}
	for location, text := range map[string]string{
		"s3://":                              "no bucket",
		"s3:///prefix":                       "no bucket",
		"s3://bucket:80/":                    "no bucket",
		"s3:bucket":                          "no bucket",
		"s3://bucket/a%20b":                  "other characters",
		"s3://bucket/../x":                   "other characters",
		"s3://bucket/?endpoint=ftp://x":      "is not https",
		"s3://bucket/?endpoint=http://x/y":   "is not https",
		"s3://bucket/?endpoint=x":            "is not https",
		"s3://bucket/?regoin=x":              "regoin",
		"s3://bucket/?region=x&region=y":     "once",
		"s3://AKIAEXAMPLE:hush@bucket/":      "AWS_ACCESS_KEY_ID",
		"s3://bucket/?endpoint=http://a:b@c": "is not https",
	} {
		_, err := ParseS3(location, getenv)
		if !errors.Is(err, ErrScheme) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", location, err)
		}
		if err != nil && strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: the secret shows in %v", location, err)
		}
	}
}

// What can be different a moment later is tried again, and nothing else.
func TestTemporary(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want bool
	}{
		{minio.ErrorResponse{StatusCode: 503, Code: "SlowDown"}, true},
		{minio.ErrorResponse{StatusCode: 500, Code: "InternalError"}, true},
		{minio.ErrorResponse{StatusCode: 409, Code: "ConditionalRequestConflict"}, true},
		{minio.ErrorResponse{StatusCode: 409, Code: "ExistingObjectIsDirectory"}, true},
		{minio.ErrorResponse{StatusCode: 404, Code: minio.NoSuchKey}, false},
		{minio.ErrorResponse{StatusCode: 403, Code: minio.AccessDenied}, false},
		{minio.ErrorResponse{StatusCode: 412, Code: minio.PreconditionFailed}, false},
		{io.ErrUnexpectedEOF, true},
		{&net.OpError{Op: "read", Err: unix.ECONNRESET}, true},
		{context.Canceled, false},
		{ErrShort, false},
	} {
		if got := temporary(fmt.Errorf("write: %w", tt.err)); got != tt.want {
			t.Errorf("%v: %v", tt.err, got)
		}
	}
}
