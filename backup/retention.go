package backup

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Retention says which backups stay when the others are forgotten. It looks at
// the backups of the same volumes by themselves. A number keeps the newest backup
// of each of so many hours, days, weeks (from Monday), months or years that have
// one; a backup stays when any rule keeps it. The zero value keeps nothing.
type Retention struct {
	Last    int `json:"last,omitempty"`
	Hourly  int `json:"hourly,omitempty"`
	Daily   int `json:"daily,omitempty"`
	Weekly  int `json:"weekly,omitempty"`
	Monthly int `json:"monthly,omitempty"`
	Yearly  int `json:"yearly,omitempty"`
	// Within keeps all that are at most so much older than the newest.
	Within Span `json:"within,omitzero"`
	// Tags keeps all that have one of them.
	Tags []string `json:"tags,omitempty"`
}

// Empty tells whether no rule keeps anything.
func (r Retention) Empty() bool {
	return r.Last <= 0 && r.Hourly <= 0 && r.Daily <= 0 && r.Weekly <= 0 && r.Monthly <= 0 && r.Yearly <= 0 &&
		r.Within == Span{} && len(r.Tags) == 0
}

// Kept is a backup that stays, and by which rules.
type Kept struct {
	Backup  Backup   `json:"backup"`
	Reasons []string `json:"reasons"`
}

// Choose divides a list of backups into those that stay and those that go, both
// oldest first. in is where days begin and end. A damaged backup, of which nobody
// knows what it holds, is in neither.
func (r Retention) Choose(list []Backup, in *time.Location) (stay []Kept, gone []Backup) {
	groups := make(map[string][]Backup)
	for _, b := range list {
		if b.Damaged == "" {
			groups[b.group()] = append(groups[b.group()], b)
		}
	}
	for _, g := range groups {
		slices.SortStableFunc(g, func(a, b Backup) int { return b.Created.Compare(a.Created) })
		reasons := r.reasons(g, in)
		for i, b := range g {
			if len(reasons[i]) > 0 {
				stay = append(stay, Kept{b, reasons[i]})
			} else {
				gone = append(gone, b)
			}
		}
	}
	older := func(a, b Backup) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) }
	slices.SortFunc(stay, func(a, b Kept) int { return older(a.Backup, b.Backup) })
	slices.SortFunc(gone, older)
	return stay, gone
}

// group names the volumes of a backup, in whatever order they were given.
func (b Backup) group() string {
	var names []string
	for _, v := range b.Volumes {
		names = append(names, cmp.Or(v.UUID, v.name()))
	}
	slices.Sort(names)
	return strings.Join(names, "\x00")
}

// reasons tells for each backup, of one group and newest first, why it stays.
func (r Retention) reasons(g []Backup, in *time.Location) [][]string {
	why := make([][]string, len(g))
	for i, b := range g {
		if i < r.Last {
			why[i] = append(why[i], "last")
		}
		if r.Within != (Span{}) && !b.Created.Before(r.Within.before(g[0].Created.In(in))) {
			why[i] = append(why[i], "within "+r.Within.String())
		}
		for _, t := range r.Tags {
			if slices.Contains(b.Tags, t) {
				why[i] = append(why[i], "tag "+t)
			}
		}
	}
	for _, p := range []struct {
		word string
		n    int
		of   func(t time.Time) string // names the period
	}{
		{"hourly", r.Hourly, func(t time.Time) string { return t.Format("2006010215-0700") }},
		{"daily", r.Daily, func(t time.Time) string { return t.Format("20060102") }},
		{"weekly", r.Weekly, func(t time.Time) string { y, w := t.ISOWeek(); return fmt.Sprint(y, w) }},
		{"monthly", r.Monthly, func(t time.Time) string { return t.Format("200601") }},
		{"yearly", r.Yearly, func(t time.Time) string { return t.Format("2006") }},
	} {
		last, n := "", 0
		for i, b := range g {
			period := p.of(b.Created.In(in))
			if n < p.n && period != last {
				why[i] = append(why[i], p.word)
				last = period
				n++
			}
		}
	}
	return why
}

// Span is a time on the calendar: a month has as many days as it has.
type Span struct{ Years, Months, Days, Hours int }

var spanForm = regexp.MustCompile(`^(?:(\d{1,4})y)?(?:(\d{1,4})m)?(?:(\d{1,6})d)?(?:(\d{1,6})h)?$`)

// ParseSpan reads a span such as 1y6m, 30d or 12h: years, months, days and hours,
// in this order.
func ParseSpan(s string) (sp Span, err error) {
	m := spanForm.FindStringSubmatch(s)
	if m == nil || s == "" {
		return sp, fmt.Errorf("%.40q is not a span such as 1y6m, 30d or 12h", s)
	}
	for i, n := range []*int{&sp.Years, &sp.Months, &sp.Days, &sp.Hours} {
		if m[i+1] != "" {
			*n, _ = strconv.Atoi(m[i+1]) // the form bounds it
		}
	}
	if sp == (Span{}) {
		return sp, fmt.Errorf("%q is no time at all", s)
	}
	return sp, nil
}

// String is the form that ParseSpan reads.
func (s Span) String() string {
	var b strings.Builder
	for _, p := range []struct {
		n    int
		unit string
	}{{s.Years, "y"}, {s.Months, "m"}, {s.Days, "d"}, {s.Hours, "h"}} {
		if p.n > 0 {
			fmt.Fprint(&b, p.n, p.unit)
		}
	}
	return b.String()
}

// MarshalText makes it a text in JSON.
func (s Span) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

func (s Span) before(t time.Time) time.Time {
	return t.AddDate(-s.Years, -s.Months, -s.Days).Add(-time.Duration(s.Hours) * time.Hour)
}
