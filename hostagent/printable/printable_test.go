package printable

import "testing"

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"Größe 3 µm\tx\n日本":            "Größe 3 µm\tx\n日本",
		"\x1b[2J\x1b]0;title\x07":      "·[2J·]0;title·",
		"a\rb\x00c\x7fd\u009be\u202ef": "a·b·c·d·e·f",
		"\xff\xfe":                     "\ufffd\ufffd",
		"👩‍🔧":                          "👩‍🔧",
	} {
		if got := Text(in); got != want {
			t.Errorf("Text(%q) is %q, want %q", in, got, want)
		}
	}
}

func TestLine(t *testing.T) {
	if got := Line("a b\nc\td\x1be"); got != "a b·c·d·e" {
		t.Errorf("got %q", got)
	}
}
