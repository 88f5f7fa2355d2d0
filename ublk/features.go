package ublk

import (
	"fmt"
	"strings"
)

// Features are the bits that GET_FEATURES answers, and the flags of a device
// (UBLK_F_ in linux/ublk_cmd.h).
type Features uint64

// The bits, with the kernel that brought each.
const (
	SupportZeroCopy     Features = 1 << 0  // 6.15 (in this form)
	URingCmdCompInTask  Features = 1 << 1  // 6.0
	NeedGetData         Features = 1 << 2  // 6.0
	UserRecovery        Features = 1 << 3  // 6.1
	UserRecoveryReissue Features = 1 << 4  // 6.1
	UnprivilegedDev     Features = 1 << 5  // 6.3
	CmdIoctlEncode      Features = 1 << 6  // 6.4
	UserCopy            Features = 1 << 7  // 6.5
	Zoned               Features = 1 << 8  // 6.6
	UserRecoveryFailIO  Features = 1 << 9  // 6.13
	UpdateSize          Features = 1 << 10 // 6.16
	AutoBufReg          Features = 1 << 11 // 6.16
	Quiesce             Features = 1 << 12 // 6.16
	PerIODaemon         Features = 1 << 13 // 6.16
	BufRegOffDaemon     Features = 1 << 14 // 6.17
	BatchIO             Features = 1 << 15 // 7.0
	Integrity           Features = 1 << 16 // 7.0
	SafeStopDev         Features = 1 << 17 // 7.0
	NoAutoPartScan      Features = 1 << 18 // 7.0
	ShmemZC             Features = 1 << 19 // 7.1
	IODescSize          Features = 1 << 20 // 7.3
)

var featureNames = [...]string{
	"zero-copy", "comp-in-task", "need-get-data", "user-recovery", "user-recovery-reissue",
	"unprivileged", "ioctl-encode", "user-copy", "zoned", "user-recovery-fail-io",
	"update-size", "auto-buf-reg", "quiesce", "per-io-daemon", "buf-reg-off-daemon",
	"batch-io", "integrity", "safe-stop", "no-auto-part-scan", "shmem-zero-copy", "io-desc-size",
}

// required is what this server cannot do without: ioctl-encoded commands, and
// devices that outlive their server.
const required = CmdIoctlEncode | UserRecovery | UserRecoveryReissue

// Has says whether all bits of want are set.
func (f Features) Has(want Features) bool { return f&want == want }

// Names lists the bits that are set, lowest first; unknown ones as "bit21".
func (f Features) Names() []string {
	var names []string
	for i := range 64 {
		if f&(1<<i) == 0 {
			continue
		}
		if i < len(featureNames) {
			names = append(names, featureNames[i])
		} else {
			names = append(names, fmt.Sprintf("bit%d", i))
		}
	}
	return names
}

func (f Features) String() string {
	return fmt.Sprintf("%#x(%s)", uint64(f), strings.Join(f.Names(), ","))
}

// State of a device in the kernel (UBLK_S_DEV_ in linux/ublk_cmd.h).
type State uint16

// The states.
const (
	StateDead     State = 0 // added and not started, or stopped
	StateLive     State = 1
	StateQuiesced State = 2 // its server is gone; requests wait for the next
	StateFailIO   State = 3 // its server is gone; requests fail
)

func (s State) String() string {
	switch s {
	case StateDead:
		return "dead"
	case StateLive:
		return "live"
	case StateQuiesced:
		return "quiesced"
	case StateFailIO:
		return "fail-io"
	}
	return fmt.Sprintf("state%d", uint16(s))
}
