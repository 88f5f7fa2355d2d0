package dm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// The kernel and we are one machine: its structs have the native byte order.
var native = binary.NativeEndian

var errShort = errors.New("answer of the kernel is cut off or garbled")

// Offsets in the records that x/sys has no complete struct for.
const (
	nameListName    = 12 // struct dm_name_list: u64 dev, u32 next, char name[]
	versionListName = 16 // struct dm_target_versions: u32 next, u32 version[3], char name[]
	depsList        = 8  // struct dm_target_deps: u32 count, u32 padding, u64 dev[]
)

// targetLine is one struct dm_target_spec with its parameter string.
type targetLine struct {
	start, length uint64
	kind, params  string
}

// encodeTable makes the data of DM_TABLE_LOAD: for every entry a struct
// dm_target_spec and its parameters, ended by a zero and padded to 8 bytes.
// "next" counts from the start of the entry it is in.
func encodeTable(table Table) ([]byte, error) {
	if err := table.Validate(); err != nil {
		return nil, err
	}
	var out []byte
	for _, e := range table {
		kind, params := e.Target.Kind(), e.Target.Params()
		if len(kind) >= unix.DM_MAX_TYPE_NAME {
			return nil, fmt.Errorf("target name %q is longer than %d", kind, unix.DM_MAX_TYPE_NAME-1)
		}
		size := align8(unix.SizeofDmTargetSpec + len(params) + 1)
		at := len(out)
		out = append(out, make([]byte, size)...)
		spec := out[at:]
		native.PutUint64(spec[0:], e.Start)
		native.PutUint64(spec[8:], e.Length)
		native.PutUint32(spec[20:], uint32(size))
		copy(spec[24:24+unix.DM_MAX_TYPE_NAME], kind)
		copy(spec[unix.SizeofDmTargetSpec:], params)
	}
	return out, nil
}

// decodeTargets reads the answer of DM_TABLE_STATUS. Other than in what is
// sent, "next" counts from the first entry, and that of the last entry counts a
// padding that the answer lacks.
func decodeTargets(data []byte, count uint32) ([]targetLine, error) {
	var list []targetLine
	at := 0
	for range count {
		if at < 0 || at > len(data)-unix.SizeofDmTargetSpec {
			return nil, errShort
		}
		spec := data[at:]
		next := int(native.Uint32(spec[20:]))
		if next < at+unix.SizeofDmTargetSpec || next > align8(len(data)) {
			return nil, errShort
		}
		params, ok := cString(data[at+unix.SizeofDmTargetSpec : min(next, len(data))])
		if !ok {
			return nil, errShort
		}
		list = append(list, targetLine{
			start: native.Uint64(spec[0:]), length: native.Uint64(spec[8:]),
			kind: unix.ByteSliceToString(spec[24 : 24+unix.DM_MAX_TYPE_NAME]), params: params,
		})
		at = next
	}
	return list, nil
}

// decodeVersions reads the answer of DM_LIST_VERSIONS.
func decodeVersions(data []byte) ([]TargetVersion, error) {
	var list []TargetVersion
	for {
		if len(data) < versionListName {
			return nil, errShort
		}
		next := int(native.Uint32(data))
		record := data
		if next != 0 {
			if next < versionListName || next > len(data) {
				return nil, errShort
			}
			record = data[:next]
		}
		name, ok := cString(record[versionListName:])
		if !ok {
			return nil, errShort
		}
		list = append(list, TargetVersion{name, Version{native.Uint32(data[4:]), native.Uint32(data[8:]), native.Uint32(data[12:])}})
		if next == 0 {
			return list, nil
		}
		data = data[next:]
	}
}

// decodeDeps reads the answer of DM_TABLE_DEPS.
func decodeDeps(data []byte) ([]Device, error) {
	if len(data) < depsList {
		return nil, errShort
	}
	count := int(native.Uint32(data))
	data = data[depsList:]
	if count > len(data)/8 {
		return nil, errShort
	}
	list := make([]Device, count)
	for i := range list {
		list[i] = decodeDev(native.Uint64(data[8*i:]))
	}
	return list, nil
}

// decodeNames reads the answer of DM_LIST_DEVICES. Without any device there is
// one record with the device number 0.
func decodeNames(data []byte) ([]Listed, error) {
	if len(data) < nameListName || native.Uint64(data) == 0 {
		return nil, nil
	}
	var list []Listed
	for {
		if len(data) < nameListName {
			return nil, errShort
		}
		next := int(native.Uint32(data[8:]))
		record := data
		if next != 0 {
			if next < nameListName || next > len(data) {
				return nil, errShort
			}
			record = data[:next]
		}
		name, ok := cString(record[nameListName:])
		if !ok {
			return nil, errShort
		}
		uuid, ok := listedUUID(record, nameListName+len(name)+1)
		if !ok {
			return nil, errShort
		}
		list = append(list, Listed{Name: name, UUID: uuid, Device: decodeDev(native.Uint64(data))})
		if next == 0 {
			return list, nil
		}
		data = data[next:]
	}
}

// listedUUID reads what follows a name in a list of devices, since interface
// 4.41: u32 event_nr, u32 flags, char uuid[], at the next multiple of 8.
func listedUUID(record []byte, after int) (string, bool) {
	at := align8(after)
	if at+8 > len(record) || native.Uint32(record[at+4:])&unix.DM_NAME_LIST_FLAG_HAS_UUID == 0 {
		return "", true
	}
	return cString(record[at+8:])
}

// cString returns the string up to the first zero; false when there is none.
func cString(b []byte) (string, bool) {
	i := bytes.IndexByte(b, 0)
	if i < 0 {
		return "", false
	}
	return string(b[:i]), true
}

func align8(n int) int { return (n + 7) &^ 7 }
