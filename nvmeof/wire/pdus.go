package wire

import "fmt"

// ICReq asks for a connection (TCP 3.6.2.1), 128 bytes:
//
//	offset bytes
//	     0     8  header
//	     8     2  PFV: version of the PDUs, 0
//	    10     1  HPDA: the data of C2HData begins at a multiple of 4*(HPDA+1)
//	    11     1  DGST: bit 0 header, bit 1 data
//	    12     4  MAXR2T: R2Ts that may be open for one command, minus one
type ICReq struct {
	Version uint16
	HPDA    uint8 // 0 to 31
	Digests Digests
	MaxR2T  uint32 // as on the wire: 0 means one
}

// Put writes a whole PDU of ICSize bytes.
func (r ICReq) Put(b []byte) { putIC(b, TypeICReq, r.Version, r.HPDA, r.Digests, r.MaxR2T) }

// ParseICReq reads a PDU whose header has passed Check. The error is a *Fault.
func ParseICReq(b []byte) (ICReq, error) {
	_ = b[ICSize-1]
	r := ICReq{Version: le.Uint16(b[8:]), HPDA: b[10], Digests: parseDigests(b[11]), MaxR2T: le.Uint32(b[12:])}
	switch {
	case r.Version != 0:
		return r, &Fault{FESUnsupportedPar, 8, fmt.Sprintf("ICReq asks for PDUs of version %d", r.Version)}
	case r.HPDA > 31:
		return r, badField(10, "ICReq has HPDA %d", r.HPDA)
	}
	return r, nil
}

// ICResp answers ICReq (TCP 3.6.2.2); the same with CPDA and MAXH2CDATA: the
// most data that one H2CData PDU may bring, at least 4096 and a multiple of 4.
type ICResp struct {
	Version    uint16
	CPDA       uint8
	Digests    Digests
	MaxH2CData uint32
}

// Put writes a whole PDU of ICSize bytes.
func (r ICResp) Put(b []byte) { putIC(b, TypeICResp, r.Version, r.CPDA, r.Digests, r.MaxH2CData) }

// ParseICResp reads a PDU whose header has passed Check. The error is a *Fault.
func ParseICResp(b []byte) (ICResp, error) {
	_ = b[ICSize-1]
	r := ICResp{Version: le.Uint16(b[8:]), CPDA: b[10], Digests: parseDigests(b[11]), MaxH2CData: le.Uint32(b[12:])}
	switch {
	case r.Version != 0:
		return r, &Fault{FESUnsupportedPar, 8, fmt.Sprintf("ICResp has PDUs of version %d", r.Version)}
	case r.CPDA > 31:
		return r, badField(10, "ICResp has CPDA %d", r.CPDA)
	case r.MaxH2CData < 4096 || r.MaxH2CData%4 != 0:
		return r, badField(12, "ICResp has MAXH2CDATA %d", r.MaxH2CData)
	}
	return r, nil
}

func putIC(b []byte, t PDUType, version uint16, pda uint8, d Digests, last uint32) {
	b = b[:ICSize]
	clear(b)
	Header{Type: t, HLen: ICSize, PLen: ICSize}.Put(b)
	le.PutUint16(b[8:], version)
	b[10], b[11] = pda, d.byte()
	le.PutUint32(b[12:], last)
}

// AppendTermReq appends a TermReq (TCP 3.6.2.3), t its direction. It brings the
// header of the PDU that it complains about, as far as it was received:
//
//	offset bytes
//	     0     8  header
//	     8     2  FES
//	    10     4  FEI
//	    24  0–128 header of the offending PDU
func AppendTermReq(b []byte, t PDUType, f *Fault, offender []byte) []byte {
	offender = offender[:min(len(offender), MaxTermSize-TermSize)]
	start := len(b)
	b = append(b, make([]byte, TermSize)...)
	Header{Type: t, HLen: TermSize, PLen: uint32(TermSize + len(offender))}.Put(b[start:])
	le.PutUint16(b[start+8:], uint16(f.Status))
	le.PutUint32(b[start+10:], f.Info)
	return append(b, offender...)
}

// ParseTermReq reads a whole TermReq whose header has passed Check.
func ParseTermReq(b []byte) *Fault {
	_ = b[TermSize-1]
	f := &Fault{Status: FES(le.Uint16(b[8:])), Info: le.Uint32(b[10:])}
	f.Detail = fmt.Sprintf("so says the peer (information %#x, about %d bytes)", f.Info, len(b)-TermSize)
	return f
}

// Data is the header of H2CData (TCP 3.6.2.6), C2HData (3.6.2.7) and R2T
// (3.6.2.8):
//
//	offset bytes
//	     0     8  header
//	     8     2  CCCID: the command's identifier
//	    10     2  TTAG: the R2T's tag; none in C2HData
//	    12     4  DATAO, R2TO: offset in the command's data
//	    16     4  DATAL, R2TL: bytes
//	    20     4  reserved
type Data struct {
	CID    uint16
	Tag    uint16
	Offset uint32
	Length uint32
}

// ParseData reads the 24 bytes.
func ParseData(b []byte) Data {
	_ = b[DataSize-1]
	return Data{le.Uint16(b[8:]), le.Uint16(b[10:]), le.Uint32(b[12:]), le.Uint32(b[16:])}
}

// Put writes what follows the common header.
func (d Data) Put(b []byte) {
	_ = b[DataSize-1]
	le.PutUint16(b[8:], d.CID)
	le.PutUint16(b[10:], d.Tag)
	le.PutUint32(b[12:], d.Offset)
	le.PutUint32(b[16:], d.Length)
	le.PutUint32(b[20:], 0)
}

// DataPDO is where data begins behind a header of hlen bytes, its digest, and
// padding to a multiple of 4*(pda+1).
func DataPDO(hlen int, d Digests, pda uint8) int {
	align := 4 * (int(pda) + 1)
	return (hlen + d.HeaderBytes() + align - 1) / align * align
}
