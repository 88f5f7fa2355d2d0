package probe

import "unsafe"

// aligned returns n zero bytes at an address that O_DIRECT accepts.
func aligned(n int) []byte {
	b := make([]byte, n+readBlock)
	skip := int(-uintptr(unsafe.Pointer(&b[0])) & (readBlock - 1))
	return b[skip : skip+n : skip+n]
}
