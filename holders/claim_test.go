package holders

import "testing"

func TestWhoIsWaitedFor(t *testing.T) {
	left := Holder{Kind: KindProcess, Command: "helper"}
	udev := Holder{Kind: KindProcess, Command: "(udev-worker)"}
	cat := Holder{Kind: KindProcess, Command: "cat"}
	mount := Holder{Kind: KindMount, Command: "systemd-udevd"}
	f := Finder{Passing: []string{"helper"}}
	for _, c := range []struct {
		list []Holder
		want bool
	}{
		{nil, false},
		{[]Holder{udev}, true},
		{[]Holder{udev, udev}, true},
		{[]Holder{left, udev}, true},
		{[]Holder{left, cat}, false},
		{[]Holder{udev, cat}, false},
		{[]Holder{mount}, false},
	} {
		if got := f.onlyPassing(c.list); got != c.want {
			t.Errorf("%v: %v", c.list, got)
		}
	}
	if (&Finder{}).onlyPassing([]Holder{left}) {
		t.Error("a process is waited for that nobody has named")
	}
}
