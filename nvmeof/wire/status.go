package wire

import "fmt"

// Status is the status field of a completion (Base 4.2.3), without the phase:
//
//	bits
//	 7–0  SC: status code
//	10–8  SCT: status code type
//	12–11 CRD: which of the controller's retry delays to wait; 0: none
//	13    M: there is more in the error log
//	14    DNR: do not retry
type Status uint16

// Flags of a status.
const (
	DNR Status = 1 << 14

	statusCode = 0x7ff
	crdShift   = 11
)

// Code is the status without its flags.
func (s Status) Code() Status { return s & statusCode }

// WithDelay asks the host to wait for one of the three retry delays of Identify
// Controller, 1 to 3, before it tries again.
func (s Status) WithDelay(n uint16) Status { return s | Status(n&3)<<crdShift }

// Delay is which of the retry delays the host is to wait.
func (s Status) Delay() uint16 { return uint16(s>>crdShift) & 3 }

// Status codes, with their type in the second digit from the left of three.
const (
	Success              Status = 0x000
	InvalidOpcode        Status = 0x001
	InvalidField         Status = 0x002
	CIDConflict          Status = 0x003
	DataTransferError    Status = 0x004
	InternalError        Status = 0x006
	AbortRequested       Status = 0x007
	InvalidNamespace     Status = 0x00b
	SequenceError        Status = 0x00c
	InvalidSGLLength     Status = 0x00f
	InvalidSGLType       Status = 0x011
	InvalidSGLOffset     Status = 0x016
	HostIDInconsistent   Status = 0x018
	KATOInvalid          Status = 0x01a
	NamespaceProtected   Status = 0x020
	TransientTransport   Status = 0x022
	LBAOutOfRange        Status = 0x080
	CapacityExceeded     Status = 0x081
	NamespaceNotReady    Status = 0x082
	ReservationConflict  Status = 0x083
	AERLimitExceeded     Status = 0x105
	InvalidLogPage       Status = 0x109
	FeatureNotSaveable   Status = 0x10d
	FeatureNotChangeable Status = 0x10e
	ConnectFormat        Status = 0x180
	ConnectBusy          Status = 0x181
	ConnectInvalid       Status = 0x182
	ConnectInvalidHost   Status = 0x184
	AuthRequired         Status = 0x191
	WriteFault           Status = 0x280
	UnrecoveredRead      Status = 0x281
	CompareFailure       Status = 0x285
	ANAPersistentLoss    Status = 0x301
	ANAInaccessible      Status = 0x302
	ANATransition        Status = 0x303
)

var statusNames = map[Status]string{
	Success: "success", InvalidOpcode: "invalid opcode", InvalidField: "invalid field in command",
	CIDConflict: "command identifier conflict", DataTransferError: "data transfer error",
	InternalError: "internal error", AbortRequested: "abort requested", InvalidNamespace: "invalid namespace or format",
	SequenceError: "command sequence error", InvalidSGLLength: "invalid SGL length",
	InvalidSGLType: "invalid SGL type", InvalidSGLOffset: "invalid SGL offset",
	HostIDInconsistent: "host identifier inconsistent", KATOInvalid: "invalid keep alive timeout",
	NamespaceProtected: "namespace is write protected", TransientTransport: "transient transport error",
	LBAOutOfRange: "LBA out of range", CapacityExceeded: "capacity exceeded",
	NamespaceNotReady: "namespace not ready", ReservationConflict: "reservation conflict",
	AERLimitExceeded: "too many asynchronous event requests", InvalidLogPage: "invalid log page",
	FeatureNotSaveable: "feature not saveable", FeatureNotChangeable: "feature not changeable",
	ConnectFormat: "connect: incompatible format", ConnectBusy: "connect: controller busy",
	ConnectInvalid: "connect: invalid parameters", ConnectInvalidHost: "connect: invalid host",
	AuthRequired: "authentication required", WriteFault: "write fault", UnrecoveredRead: "unrecovered read error",
	CompareFailure: "compare failure", ANAPersistentLoss: "asymmetric access persistent loss",
	ANAInaccessible: "asymmetric access inaccessible", ANATransition: "asymmetric access transition",
}

func (s Status) String() string {
	name := statusNames[s.Code()]
	if name == "" {
		name = "status"
	}
	text := fmt.Sprintf("%s (%03xh)", name, uint16(s.Code()))
	if d := s.Delay(); d != 0 {
		text += fmt.Sprintf(", retry delay %d", d)
	}
	if s&DNR != 0 {
		text += ", do not retry"
	}
	return text
}

// Error makes a status that is not Success usable as an error.
func (s Status) Error() string { return "nvme: " + s.String() }
