// Package limits holds tests of what happens at the ends: many volumes, many
// extents, many swaps, and no room left. They run in the test machine.
package limits
