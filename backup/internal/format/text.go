package format

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// A text object is one line of 64 bytes and a JSON body, so that `head` is a
// rescue tool:
//
//	offset  bytes  field
//	     0      9  "swapback-"
//	     9     12  kind, padded with spaces: config, backup, lease, pending, key,
//	               interrupted
//	    21      5  " v" and the version, three digits
//	    26     20  " length " and the body's bytes, twelve digits
//	    46     16  " crc32c " and eight hex digits
//	    62      2  space, newline
//	    64         body
//
// The CRC32C covers bytes 0–53 and the body. This line keeps its shape in every
// version; a reader checks the CRC first, then the version.
const (
	textHeaderSize = 64
	textCRC        = 54
	// maxDigits bounds a number in a body: one that does not fit is copied several
	// times for the error.
	maxDigits = 64
)

// Kinds of text objects.
const (
	TextConfig  = "config"
	TextBackup  = "backup"
	TextLease   = "lease"
	TextPending = "pending"
	TextKey     = "key"
	// TextInterrupted is what an interrupted backup left.
	TextInterrupted = "interrupted"
)

// TextVersion is what this program writes and the newest it reads.
const TextVersion = 1

// EncodeText makes a text object of v.
func EncodeText(kind string, v any) ([]byte, error) {
	body, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", kind, err)
	}
	body = append(body, '\n')
	if len(body) > MaxText {
		return nil, fmt.Errorf("encode %s: %d bytes are more than %d", kind, len(body), MaxText)
	}
	return encodeText(kind, TextVersion, body), nil
}

func encodeText(kind string, version int, body []byte) []byte {
	head := fmt.Sprintf("swapback-%-12s v%03d length %012d crc32c ", kind, version, len(body))
	sum := crc([]byte(head), body)
	return append(fmt.Appendf(make([]byte, 0, textHeaderSize+len(body)), "%s%08x \n", head, sum), body...)
}

// DecodeText checks a text object of the kind and decodes its body into v.
func DecodeText(object []byte, kind string, v any) error {
	if len(object) < textHeaderSize {
		return truncated("%d bytes are less than a header", len(object))
	}
	head, body := object[:textHeaderSize], object[textHeaderSize:]
	if !strings.HasPrefix(string(head), "swapback-") {
		return corrupt("it does not begin with \"swapback-\"")
	}
	length, err := strconv.ParseUint(string(head[34:46]), 10, 63)
	if err != nil {
		return corrupt("its header states no length")
	}
	if length > MaxText {
		return corrupt("its header states %d bytes, the bound is %d", length, MaxText)
	}
	if uint64(len(body)) < length {
		return truncated("%d of %d bytes are there", len(body), length)
	}
	if uint64(len(body)) > length {
		return corrupt("%d bytes follow its end", uint64(len(body))-length)
	}
	if want := fmt.Sprintf("%08x \n", crc(head[:textCRC], body)); string(head[textCRC:]) != want {
		return corrupt("checksum does not match")
	}
	if got := strings.TrimRight(string(head[9:21]), " "); got != kind {
		return corrupt("it is a %q, not a %q", got, kind)
	}
	version, err := strconv.ParseUint(string(head[23:26]), 10, 16)
	if err != nil || version == 0 {
		return corrupt("its header states no version")
	}
	if version > TextVersion {
		return fmt.Errorf("%w: %s version %d, this program reads up to %d", ErrVersion, kind, version, TextVersion)
	}
	return DecodeBody(body, v)
}

// DecodeBody decodes the body of a text object into v.
func DecodeBody(body []byte, v any) error {
	if hasLongNumber(body) {
		return corrupt("its body has a number of more than %d digits", maxDigits)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return corrupt("its body can't be decoded: %.200v", err)
	}
	return nil
}

// hasLongNumber tells whether more than maxDigits bytes of a number, or of what is
// no JSON at all, stand together outside of a text.
func hasLongNumber(body []byte) bool {
	run, quoted := 0, false
	for i := 0; i < len(body); i++ {
		switch c := body[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			run, quoted = 0, !quoted
		case quoted:
		case strings.IndexByte(" \t\r\n,:[]{}", c) >= 0:
			run = 0
		default:
			if run++; run > maxDigits {
				return true
			}
		}
	}
	return false
}
