//go:build vm

package main

import (
	"os"
	"testing"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/soak/rig"
)

// A device that was made for failed data is read-only for the driver too, which
// can't be changed while it lives. Released data is writable all the same.
func TestReleaseOfADeviceMadeReadOnly(t *testing.T) {
	for name, between := range map[string]func(d *rig.Daemon){
		"as it was made": func(*rig.Daemon) {},
		"adopted":        func(d *rig.Daemon) { d.Kill(); d.Run() },
	} {
		t.Run(name, func(t *testing.T) {
			d := rig.Start(t)
			d.Pool()
			d.Volume("a", 8*rig.MiB)
			_, err := d.Client.Quarantine(t.Context(), "a", api.QuarantineRequest{Quarantine: api.Quarantine{Reason: "r"}})
			if err == nil {
				_, err = d.Client.Detach(t.Context(), "a")
			}
			if err == nil {
				_, err = d.Client.Attach(t.Context(), "a", api.AttachRequest{})
			}
			if err != nil {
				t.Fatal(err)
			}
			between(d)

			// Whoever looks at the evidence keeps it.
			f, err := os.Open(d.Show("a").Device)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := d.Client.ReleaseQuarantine(t.Context(), "a"); api.CodeOf(err) != api.CodeInUse {
				t.Errorf("released under a holder: %v", err)
			}
			f.Close()
			if q := d.Show("a").Position.Quarantine; q == nil {
				t.Fatal("the label is gone although the release was refused")
			}

			v, err := d.Client.ReleaseQuarantine(t.Context(), "a")
			if err != nil || v.ReadOnly || v.State != api.StateServing {
				t.Fatalf("released: %+v, %v", v, err)
			}
			rig.WriteDevice(t, v.Device, 0, rig.RandomBytes(1, 4096))
		})
	}
}
