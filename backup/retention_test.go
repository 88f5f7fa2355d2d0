package backup

import (
	"fmt"
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // the machine need not have the zones
)

// at makes backups of a volume, oldest first.
func at(t *testing.T, volume string, in *time.Location, times ...string) (list []Backup) {
	t.Helper()
	for _, s := range times {
		when, err := time.ParseInLocation("2006-01-02 15:04", s, in)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, Backup{ID: volume + " " + s, Created: when.UTC(), Volumes: []BackupVolume{{VolumeRef: VolumeRef{Name: volume}}}})
	}
	return list
}

func TestRetention(t *testing.T) {
	utc := at(t, "a", time.UTC,
		"2024-12-31 23:30", "2025-03-01 12:00", "2025-12-28 12:00", "2025-12-29 12:00", "2026-01-01 00:10",
		"2026-01-31 12:00", "2026-02-28 12:00", "2026-03-01 10:05", "2026-03-01 10:55", "2026-03-01 11:00")
	for _, tt := range []struct {
		name string
		r    Retention
		want string // hours of those that stay, newest first, with reasons
	}{
		{"nothing", Retention{}, ""},
		{"last", Retention{Last: 2}, "2026-03-01 11:00 (last), 2026-03-01 10:55 (last)"},
		{"more than there are", Retention{Last: 100}, "all"},
		{"hourly", Retention{Hourly: 2}, "2026-03-01 11:00 (hourly), 2026-03-01 10:55 (hourly)"},
		{"daily", Retention{Daily: 3}, "2026-03-01 11:00 (daily), 2026-02-28 12:00 (daily), 2026-01-31 12:00 (daily)"},
		// The 28th of December 2025 is a Sunday; week 1 of 2026 begins the day after.
		{"weekly", Retention{Weekly: 5}, "2026-03-01 11:00 (weekly), 2026-01-31 12:00 (weekly), 2026-01-01 00:10 (weekly), 2025-12-28 12:00 (weekly), 2025-03-01 12:00 (weekly)"},
		{"monthly", Retention{Monthly: 4}, "2026-03-01 11:00 (monthly), 2026-02-28 12:00 (monthly), 2026-01-31 12:00 (monthly), 2025-12-29 12:00 (monthly)"},
		{"yearly", Retention{Yearly: 9}, "2026-03-01 11:00 (yearly), 2025-12-29 12:00 (yearly), 2024-12-31 23:30 (yearly)"},
		{"within hours", Retention{Within: Span{Hours: 1}}, "2026-03-01 11:00 (within 1h), 2026-03-01 10:55 (within 1h), 2026-03-01 10:05 (within 1h)"},
		{"within a month", Retention{Within: Span{Months: 1, Days: 1}}, "2026-03-01 11:00 (within 1m1d), 2026-03-01 10:55 (within 1m1d), 2026-03-01 10:05 (within 1m1d), 2026-02-28 12:00 (within 1m1d), 2026-01-31 12:00 (within 1m1d)"},
		{"two rules", Retention{Last: 1, Daily: 1}, "2026-03-01 11:00 (last daily)"},
	} {
		stay, gone := tt.r.Choose(utc, time.UTC)
		if len(stay)+len(gone) != len(utc) {
			t.Errorf("%s: %d stay and %d go of %d", tt.name, len(stay), len(gone), len(utc))
		}
		var got []string
		for i := len(stay) - 1; i >= 0; i-- {
			got = append(got, fmt.Sprintf("%s (%s)", strings.TrimPrefix(stay[i].Backup.ID, "a "), strings.Join(stay[i].Reasons, " ")))
		}
		if tt.want == "all" && len(gone) == 0 {
			continue
		}
		if g := strings.Join(got, ", "); g != tt.want {
			t.Errorf("%s: %s\nwant %s", tt.name, g, tt.want)
		}
	}
}

// Volumes are looked at by themselves, in whatever order a backup has them.
func TestRetentionByVolumes(t *testing.T) {
	list := append(at(t, "a", time.UTC, "2026-01-01 00:00", "2026-01-02 00:00"), at(t, "b", time.UTC, "2026-01-01 00:00")...)
	two := at(t, "c", time.UTC, "2026-01-03 00:00", "2026-01-04 00:00")
	for i, order := range [][]string{{"a", "b"}, {"b", "a"}} {
		two[i].Volumes = nil
		for _, name := range order {
			two[i].Volumes = append(two[i].Volumes, BackupVolume{VolumeRef: VolumeRef{Name: name}})
		}
	}
	list = append(append(list, two...), Backup{ID: "damaged", Damaged: "yes"})
	stay, gone := Retention{Last: 1}.Choose(list, time.UTC)
	if len(stay) != 3 || len(gone) != 2 || gone[0].ID != "a 2026-01-01 00:00" || gone[1].ID != "c 2026-01-03 00:00" {
		t.Errorf("stay %v, gone %v", stay, gone)
	}
}

// A tag keeps a backup whatever else goes.
func TestRetentionByTag(t *testing.T) {
	list := at(t, "a", time.UTC, "2026-01-01 00:00", "2026-01-02 00:00")
	list[0].Tags = []string{"x", "keep"}
	stay, gone := Retention{Tags: []string{"keep"}}.Choose(list, time.UTC)
	if len(stay) != 1 || len(gone) != 1 || stay[0].Reasons[0] != "tag keep" {
		t.Errorf("stay %v, gone %v", stay, gone)
	}
}

// Days are those of the place, and an hour that comes twice is two.
func TestRetentionInAPlace(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	// 23:30 and 00:30 UTC are one day in Berlin.
	list := at(t, "a", time.UTC, "2026-05-01 23:30", "2026-05-02 00:30")
	if stay, _ := (Retention{Daily: 5}).Choose(list, berlin); len(stay) != 1 {
		t.Errorf("%d days in Berlin", len(stay))
	}
	if stay, _ := (Retention{Daily: 5}).Choose(list, time.UTC); len(stay) != 2 {
		t.Errorf("%d days in UTC", len(stay))
	}
	list = at(t, "a", time.UTC, "2026-10-25 00:30", "2026-10-25 01:30") // 02:30 both
	if stay, _ := (Retention{Hourly: 5}).Choose(list, berlin); len(stay) != 2 {
		t.Errorf("%d hours when clocks go back", len(stay))
	}
}

func TestSpans(t *testing.T) {
	for in, want := range map[string]Span{"1y6m": {Years: 1, Months: 6}, "30d": {Days: 30}, "1y2m3d4h": {1, 2, 3, 4}, "12h": {Hours: 12}} {
		if got, err := ParseSpan(in); err != nil || got != want || got.String() != in {
			t.Errorf("%q is %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "0d", "1", "d", "1d1y", "-1d", "1.5d", "1w", "99999y"} {
		if got, err := ParseSpan(in); err == nil {
			t.Errorf("%q is %v", in, got)
		}
	}
}

func FuzzParseSpan(f *testing.F) {
	f.Add("1y6m")
	f.Fuzz(func(t *testing.T, s string) {
		sp, err := ParseSpan(s)
		if err != nil {
			return
		}
		if again, err := ParseSpan(sp.String()); err != nil || again != sp {
			t.Errorf("%q is %v, again %v, %v", s, sp, again, err)
		}
	})
}
