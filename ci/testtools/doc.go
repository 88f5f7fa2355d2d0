// Package testtools names the programs that tests run and the project is not built of.
// It is a module of its own, so that nothing of them gets into the project's.
package testtools
