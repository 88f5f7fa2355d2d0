package backup

import "iter"

// chunkRuns turns ranges of a volume, in order and within it, into runs of whole
// chunks: every chunk that a range touches, once, and neighbours joined. The last
// chunk of the volume may be a short one.
func chunkRuns(ranges []Range, size, chunk int64) iter.Seq[Range] {
	return func(yield func(Range) bool) {
		var from, to int64 // the run that is not told yet
		for _, r := range ranges {
			if r.Length == 0 {
				continue
			}
			begin := r.Offset - r.Offset%chunk
			end := min((r.Offset+r.Length+chunk-1)/chunk*chunk, size)
			if begin <= to {
				to = max(to, end)
				continue
			}
			if to > from && !yield(Range{from, to - from}) {
				return
			}
			from, to = begin, end
		}
		if to > from {
			yield(Range{from, to - from})
		}
	}
}
