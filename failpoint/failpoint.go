// Package failpoint names the steps at which a crash test ends the process.
//
// A point is a call in the product:
//
//	failpoint.Hit("swap: staged")
//
// In a release build Hit is empty and inlined: neither the call nor the name is
// in the program (the tests of this package look). Built with the tag
// failpoint, Hit reads its orders from the environment:
//
//	SWAPBACK_FAILPOINT=swap: staged          the process kills itself there
//	SWAPBACK_FAILPOINT=swap: staged:2        … when it comes there the second time
//	SWAPBACK_FAILPOINT=swap: staged=stop     … stops (SIGSTOP) until it gets SIGCONT
//	SWAPBACK_FAILPOINT=swap: staged=90s      only what comes to this point waits there,
//	                                         so long; all else goes on
//	SWAPBACK_FAILPOINT=@/some/file           the order is in the file, read at each
//	                                         point; removed when it is carried out
//	SWAPBACK_FAILPOINT_TRACE=/some/file      every point that is reached is added to
//	                                         the file, one a line
//
// The kill is SIGKILL: nothing deferred runs, as nothing runs when the kernel
// kills for want of memory or an operator with kill -9.
//
// A name is "operation: step", a constant, and used at one place only; a test
// holds that. The crash tests in soak/crash find all names in the source and
// fail when no program has ended at one.
package failpoint
