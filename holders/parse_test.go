package holders

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseMountinfo(t *testing.T) {
	tests := []struct {
		name, line string
		want       mount
		bad        bool
	}{
		{name: "plain", line: "36 35 98:0 / /mnt rw,noatime - ext4 /dev/vda rw\n",
			want: mount{36, devno{98, 0}, "/mnt", "ext4", "/dev/vda"}},
		{name: "optional fields", line: "36 35 259:3 /sub /mnt rw master:1 shared:7 - xfs /dev/nvme0n1 rw,attr2\n",
			want: mount{36, devno{259, 3}, "/mnt", "xfs", "/dev/nvme0n1"}},
		{name: "escapes", line: `40 35 8:1 / /mnt/my\040disk\134x rw - ext4 /dev/disk\040one rw`,
			want: mount{40, devno{8, 1}, `/mnt/my disk\x`, "ext4", "/dev/disk one"}},
		{name: "dash as a mount point", line: "41 35 8:1 / - rw - ext4 /dev/sda rw",
			want: mount{41, devno{8, 1}, "-", "ext4", "/dev/sda"}},
		{name: "empty source", line: "42 35 0:33 / /x rw - tmpfs  rw",
			want: mount{id: 42, dev: devno{0, 33}, point: "/x", fsType: "tmpfs"}},
		{name: "no separator", line: "36 35 98:0 / /mnt rw ext4 /dev/vda rw", bad: true},
		{name: "no device", line: "36 35 980 / /mnt rw - ext4 /dev/vda rw", bad: true},
		{name: "cut short", line: "36 35 98:0 /", bad: true},
		{name: "cut after the separator", line: "36 35 98:0 / /mnt rw -", bad: true},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parseMount(tc.line)
			if tc.bad != (err != nil) {
				t.Fatalf("error %v, want one: %v", err, tc.bad)
			}
			if got != tc.want {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

func TestParseMountinfoKeepsGoodLines(t *testing.T) {
	got, err := parseMountinfo("nonsense\n36 35 98:0 / /mnt rw - ext4 /dev/vda rw\n")
	if err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("error %v does not name the line", err)
	}
	if len(got) != 1 || got[0].point != "/mnt" {
		t.Errorf("good line was lost: %+v", got)
	}
}

func TestParseSwaps(t *testing.T) {
	text := "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n" +
		"/dev/nvme0n1                            partition\t4194300\t\t0\t\t-2\n" +
		"/var/swap\\040file\\040(deleted)         file\t\t1024\t0\t-3\n"
	want := []string{"/dev/nvme0n1", "/var/swap file"}
	if got := parseSwaps(text); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestParseOpenMode(t *testing.T) {
	tests := []struct{ text, want string }{
		{"pos:\t0\nflags:\t0100000\nmnt_id:\t20\n", "for reading"},
		{"pos:\t0\nflags:\t0100001\n", "for writing"},
		{"pos:\t0\nflags:\t02140002\n", "for writing"},
		{"pos:\t0\nflags:\t012000000\n", ""},
		{"", "for writing"},
		{"flags:\tzzz\n", "for writing"},
	}
	for _, tc := range tests {
		if got := parseOpenMode(tc.text); got != tc.want {
			t.Errorf("%q: got %q, want %q", tc.text, got, tc.want)
		}
	}
}

func TestParseRingFiles(t *testing.T) {
	text := "pos:\t0\nSqMask:\t0x3f\nUserFiles:\t3\n" +
		"    0: /dev/nvme0n1\n    1: <none>\n    2: /dev/my\\040disk\n" +
		"UserBufs:\t1\n    0: /not/a/file\nPollList:\n  op=1, task_works=0\n"
	want := []string{"/dev/my disk", "/dev/nvme0n1"}
	if got := parseRingFiles(text); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestParseMapped(t *testing.T) {
	text := "55d0-55d1 r-xp 00000000 fe:00 123 /usr/bin/cat\n" +
		"7f00-7f01 rw-s 00000000 00:05 9 /dev/nvme0n1\n" +
		"7f02-7f03 rw-s 00001000 00:05 9 /dev/nvme0n1 (deleted)\n" +
		"7ffe-7fff rw-p 00000000 00:00 0 [stack]\n"
	want := []string{"/dev/nvme0n1"}
	if got := parseMapped(text); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestParseDevno(t *testing.T) {
	if got, err := parseDevno("259:12\n"); err != nil || got != (devno{259, 12}) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, s := range []string{"", ":", "259", "259:", "-1:0", "/dev/sda", "1:2:3", "99999999999:1"} {
		if got, err := parseDevno(s); err == nil {
			t.Errorf("%q: taken for %v", s, got)
		}
	}
}

// Whatever the kernel writes, a parser neither fails hard nor invents a path.
func FuzzParse(f *testing.F) {
	f.Add("36 35 98:0 /root /mnt rw,noatime master:1 - ext4 /dev/vda rw\n")
	f.Add("Filename Type\n/dev/x\\040y partition 1 2 3\n")
	f.Add("flags:\t0100002\nUserFiles:\t1\n    0: /dev/a\n")
	f.Add("7f00-7f01 rw-s 0 00:05 9 /dev/nvme0n1 (deleted)\n")
	f.Fuzz(func(t *testing.T, text string) {
		list, _ := parseMountinfo(text)
		if len(list) > strings.Count(text, "\n")+1 {
			t.Errorf("more mounts than lines: %s", cmp.Diff(list, text))
		}
		for _, p := range append(parseSwaps(text), parseMapped(text)...) {
			if !strings.HasPrefix(p, "/") {
				t.Errorf("%q is not a path", p)
			}
		}
		for _, p := range parseRingFiles(text) {
			if !strings.HasPrefix(p, "/") {
				t.Errorf("%q is not a path", p)
			}
		}
		parseOpenMode(text)
		parseDevno(text)
	})
}
