package volume

import (
	"os"
	"path/filepath"
	"testing"
)

// TestSessionOfTheChangeMaps: one of an earlier life of the machine is none, and
// what can't be read is an error, so that it is logged.
func TestSessionOfTheChangeMaps(t *testing.T) {
	const session, boot = "00112233-4455-6677-8899-aabbccddeeff", "b00b"
	path := filepath.Join(t.TempDir(), sessionFile)
	if got, err := readSession(path, boot); got != "" || err != nil {
		t.Errorf("without a file: %q, %v", got, err)
	}
	if err := writeFile(path, session+" "+boot+"\n"); err != nil {
		t.Fatal(err)
	}
	if got, err := readSession(path, boot); got != session || err != nil {
		t.Errorf("of this life: %q, %v", got, err)
	}
	if got, err := readSession(path, "another"); got != "" || err != nil {
		t.Errorf("of another life: %q, %v", got, err)
	}
	for _, text := range []string{"", "\n", "no-uuid " + boot + "\n", "00112233445566778899aabbccddeeff " + boot} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := readSession(path, boot); got != "" || err == nil {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	if id, err := bootID(); id == "" || err != nil {
		t.Errorf("boot id %q, %v", id, err)
	}
	if inMemory("/proc") {
		t.Error("/proc is taken for a file system in memory that holds files")
	}
}
