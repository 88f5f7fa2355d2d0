package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/swapback/swapback/api"
	"github.com/swapback/swapback/hostagent"
)

func TestSparesOf(t *testing.T) {
	for _, tc := range []struct {
		names, onto string
		want        map[string]string
	}{
		{"db", "", map[string]string{}},
		{"db", "spare", map[string]string{"db": "spare"}},
		{"db", "db=spare", map[string]string{"db": "spare"}},
		{"db log", "log=s2 db=s1", map[string]string{"db": "s1", "log": "s2"}},
		{"db log", "log=s2", map[string]string{"log": "s2"}},
		{"tank/db", "tank/db=tank/spare", map[string]string{"tank/db": "tank/spare"}},
	} {
		got, err := sparesOf(strings.Fields(tc.names), strings.Fields(tc.onto))
		if err != nil {
			t.Errorf("%s onto %s: %v", tc.names, tc.onto, err)
		}
		if d := cmp.Diff(tc.want, got); d != "" {
			t.Errorf("%s onto %s (-want +got):\n%s", tc.names, tc.onto, d)
		}
	}
}

func TestRecoverOutput(t *testing.T) {
	r := hostagent.RecoverResult{
		Backup: "20260301T120000Z-1a2b3c4d", Created: instant,
		Volumes: []hostagent.RecoveredVolume{
			{Volume: "tank/db", Spare: "tank/db-spare", Quarantined: true},
			{Volume: "tank/log", Spare: "tank/log-spare-2", SpareCreated: true},
		},
		Swap: api.SwapResult{Pause: 0.0123, Coherent: true},
		Phases: []hostagent.PhaseTime{
			{Phase: hostagent.PhaseChoose, Seconds: 0.011}, {Phase: hostagent.PhaseRestore, Seconds: 12.34},
			{Phase: hostagent.PhaseSwap, Seconds: 0.05}, {Phase: hostagent.PhaseQuarantine, Seconds: 0.004},
		},
		Seconds:  12.405,
		Warnings: []string{"tank/log-spare-2 is not in quarantine: the daemon went away"},
	}
	var out strings.Builder
	a := &app{out: &out, local: time.UTC}
	a.writeRecover(&out, r)
	golden(t, "recover", out.String())

	out.Reset()
	if err := a.event(recoverResult{"result", r}); err != nil {
		t.Fatal(err)
	}
	var back map[string]any
	if err := json.Unmarshal([]byte(out.String()), &back); err != nil || back["type"] != "result" || back["backup"] != r.Backup {
		t.Errorf("%v: %s", err, out.String())
	}
}
