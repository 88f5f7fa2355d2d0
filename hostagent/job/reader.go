package job

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
)

// reader walks a document and collects mistakes. The document is read node by
// node, not into structs, because the first mistake must not hide the others
// and each needs its line.
type reader struct{ mistakes []Mistake }

// at is a node with the path that leads to it.
type at struct {
	node ast.Node
	path string
}

func (r *reader) wrong(a at, format string, args ...any) {
	if len(r.mistakes) == maxMistakes {
		return
	}
	m := Mistake{Path: a.path, Text: fmt.Sprintf(format, args...)}
	if a.node != nil {
		if t := a.node.GetToken(); t != nil && t.Position != nil {
			m.Line, m.Column = t.Position.Line, t.Position.Column
		}
	}
	r.mistakes = append(r.mistakes, m)
}

// mapping calls the function of each key. Keys that are unknown, doubled or
// no strings are mistakes, and so are required keys that are missing.
func (r *reader) mapping(a at, required []string, keys map[string]func(at)) {
	var pairs []*ast.MappingValueNode
	switch n := a.node.(type) {
	case *ast.MappingNode:
		pairs = n.Values
	case *ast.MappingValueNode:
		pairs = []*ast.MappingValueNode{n}
	default:
		r.wrong(a, "want keys and values, not %s", kind(a.node))
		return
	}
	seen := map[string]bool{}
	for _, p := range pairs {
		here := at{p.Key, a.path}
		key, ok := keyOf(p.Key)
		if !ok {
			r.wrong(here, "want a plain key, not %s", kind(p.Key))
			continue
		}
		read, known := keys[key]
		switch {
		case !known && keys[anyKey] != nil:
			read = keys[anyKey]
		case !known:
			r.wrong(here, "unknown key %.80q%s", key, suggest(key, keys))
			continue
		}
		if seen[key] {
			r.wrong(here, "key %q stands here twice", key)
			continue
		}
		seen[key] = true
		value := at{p.Value, join(a.path, key)}
		if _, null := p.Value.(*ast.NullNode); null || p.Value == nil {
			r.wrong(at{p.Key, value.path}, "has no value")
			continue
		}
		read(value)
	}
	for _, key := range required {
		if !seen[key] {
			r.wrong(a, "%q is missing", key)
		}
	}
}

// anyKey stands for all keys that are not named, see [reader.mapping].
const anyKey = "*"

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func keyOf(n ast.MapKeyNode) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.IntegerNode, *ast.BoolNode, *ast.FloatNode:
		return n.GetToken().Value, true
	}
	return "", false
}

// items calls f with every item of a list, of which there must be one.
func (r *reader) items(a at, f func(i int, item at)) {
	list, ok := a.node.(*ast.SequenceNode)
	if !ok {
		r.wrong(a, "want a list, not %s", kind(a.node))
		return
	}
	if len(list.Values) == 0 {
		r.wrong(a, "the list is empty")
	}
	for i, n := range list.Values {
		item := at{n, fmt.Sprintf("%s[%d]", a.path, i)}
		if _, null := n.(*ast.NullNode); null || n == nil {
			r.wrong(at{list, item.path}, "is empty")
			continue
		}
		f(i, item)
	}
}

// text returns a string. Numbers and the like are refused: YAML would have
// changed how they are written. They are not quoted: they may be arguments.
func (r *reader) text(a at) (string, bool) {
	switch n := a.node.(type) {
	case *ast.StringNode:
		return r.clean(a, n.Value)
	case *ast.LiteralNode:
		return r.clean(a, n.Value.Value)
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		r.wrong(a, "want text, not %s; write it in quotes", kind(a.node))
	default:
		r.wrong(a, "want text, not %s", kind(a.node))
	}
	return "", false
}

func (r *reader) clean(a at, s string) (string, bool) {
	if strings.TrimSpace(s) == "" {
		r.wrong(a, "is empty")
		return "", false
	}
	if strings.ContainsRune(s, 0) {
		r.wrong(a, "holds a zero byte")
		return "", false
	}
	return s, true
}

// scalar returns any single value as it is written.
func (r *reader) scalar(a at) (string, bool) {
	switch n := a.node.(type) {
	case *ast.StringNode:
		if strings.ContainsRune(n.Value, 0) {
			r.wrong(a, "holds a zero byte")
			return "", false
		}
		return n.Value, true // may be empty: an empty variable
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return a.node.GetToken().Value, true
	}
	return r.text(a)
}

func (r *reader) boolean(a at) (value, ok bool) {
	n, ok := a.node.(*ast.BoolNode)
	if !ok {
		r.wrong(a, "want true or false")
		return false, false
	}
	return n.Value, true
}

func (r *reader) number(a at, low, high int) int {
	n, ok := a.node.(*ast.IntegerNode)
	if ok {
		v, err := strconv.Atoi(n.GetToken().Value)
		if err == nil && v >= low && v <= high {
			return v
		}
	}
	r.wrong(a, "want a number from %d to %d", low, high)
	return low
}

func (r *reader) duration(a at) time.Duration {
	const want = "want a time such as 90s, 5m or 1h30m"
	var text string
	switch n := a.node.(type) {
	case *ast.StringNode:
		text = n.Value
	case *ast.IntegerNode:
		r.wrong(a, "%s has no unit; %s", n.GetToken().Value, want)
		return 0
	default:
		r.wrong(a, want)
		return 0
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		r.wrong(a, "%q is no time; %s", text, want)
		return 0
	}
	return d
}

func (r *reader) texts(a at) []string {
	var list []string
	r.items(a, func(_ int, item at) {
		if s, ok := r.text(item); ok {
			list = append(list, s)
		}
	})
	return list
}

// kind names a node for people.
func kind(n ast.Node) string {
	switch n.(type) {
	case nil, *ast.NullNode:
		return "nothing"
	case *ast.StringNode, *ast.LiteralNode:
		return "text"
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return "a number"
	case *ast.BoolNode:
		return "true or false"
	case *ast.SequenceNode:
		return "a list"
	case *ast.MappingNode, *ast.MappingValueNode:
		return "keys and values"
	case *ast.AnchorNode, *ast.AliasNode:
		return "an anchor or alias (these are not supported)"
	case *ast.TagNode:
		return "a tag (these are not supported)"
	}
	return "something else"
}

// suggest returns the known key that is nearest to a wrong one.
func suggest(key string, keys map[string]func(at)) string {
	var known []string
	for k := range keys {
		known = append(known, k)
	}
	slices.Sort(known)
	best, distance := "", 3
	for _, k := range known {
		if d := edits(strings.ReplaceAll(key, "-", "_"), k); d < distance {
			best, distance = k, d
		}
	}
	if best != "" {
		return fmt.Sprintf("; did you mean %q?", best)
	}
	return "; known are " + strings.Join(known, ", ")
}

// edits counts the letters to insert, delete or change to make a to b.
func edits(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
