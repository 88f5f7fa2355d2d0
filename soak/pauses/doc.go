// Package pauses holds the tests of long pauses: what a host stands that uses a volume by
// NVMe/TCP while a swap keeps the gates closed, for up to five minutes. They idle.
package pauses
