package rig

import (
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
)

// Metrics asks the daemon for its metrics as Prometheus does: values by name and
// labels, as the text has them.
func (d *Daemon) Metrics() map[string]float64 {
	d.t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", d.Socket())
	}}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get("http://swapbackd/metrics")
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		d.t.Fatalf("%s, %v: %s", resp.Status, err, text)
	}
	values := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		at := strings.LastIndexByte(line, ' ')
		if strings.HasPrefix(line, "#") || at < 0 {
			continue
		}
		if values[line[:at]], err = strconv.ParseFloat(strings.TrimSpace(line[at:]), 64); err != nil {
			d.t.Fatalf("line %q: %v", line, err)
		}
	}
	return values
}
