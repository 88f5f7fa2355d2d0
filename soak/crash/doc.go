// Package crash kills the real programs at every named step (package failpoint)
// of what they do, starts them again, and looks whether the machine is in
// exactly one of the two worlds: the one before the operation or the one after
// it. It holds tests only; they run on the test machine.
//
// The points are read from the source. A point at which no scenario ends a program
// fails the test, so a new one is either crashed at or complained about.
package crash
