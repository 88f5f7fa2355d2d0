package main

import (
	"strings"
	"testing"
)

// A verification reads a sample, and says which, unless it is told otherwise.
func TestVerifySamples(t *testing.T) {
	c, _ := withRepo(t)
	c.must(t, "backup", "create", "log")
	if v := result[verifyResult](t, c.must(t, "backup", "verify", "--json")); !v.OK || v.Chunks != 1 || v.Sample != defaultSample {
		t.Errorf("by default: %+v", v)
	}
	read := int64(0)
	for _, seed := range []string{"0", "1"} {
		v := result[verifyResult](t, c.must(t, "backup", "verify", "latest", "--sample", "50%", "--seed", seed, "--json"))
		read += v.ChunksRead
	}
	if read != 1 {
		t.Errorf("%d of 1 chunk were read by the two halves", read)
	}
	if out := c.must(t, "backup", "verify", "--sample", "0.5%", "--seed", "41"); !strings.Contains(out, "a sample of 0.5% with seed 41; --seed 42") || !strings.Contains(out, "all good") {
		t.Errorf("sample:\n%s", out)
	}
	if out := c.must(t, "backup", "verify", "--all"); !strings.Contains(out, "1 of 1 chunk, 1 MiB of 1 MiB of data") {
		t.Errorf("all:\n%s", out)
	}
	if v := result[verifyResult](t, c.must(t, "backup", "verify", "--structure-only", "--json")); !v.OK || v.ChunksRead != 0 || v.Nodes != 1 || v.Sample != 0 {
		t.Errorf("structure: %+v", v)
	}
	for _, bad := range [][]string{{"--sample", "0%"}, {"--sample", "101%"}, {"--sample", "x"}, {"--sample", "5"}, {"--sample", "NaN%"}, {"--all", "--structure-only"}} {
		if _, errOut, code := c.run(append([]string{"backup", "verify"}, bad...)...); code != exitUsage {
			t.Errorf("%v: exit code %d, %s", bad, code, errOut)
		}
	}
}
