// Package wire is NVMe over TCP as bytes: PDUs, commands, completions, and the
// structures that Identify, log pages, features and Fabrics commands carry. It
// encodes and decodes, for both sides, and does nothing else.
//
// Everything is little-endian. The comments name the specifications:
//
//	Base       NVM Express Base Specification 2.0
//	NVM        NVM Command Set Specification 1.0
//	TCP        NVMe/TCP Transport Specification 1.0
//
// What a command meets often (headers, submissions, completions) has plain
// functions on byte slices that do not allocate. What is met once per connection
// is described by its fields' offsets, once for both directions; see layout.
//
// Decoders never read past what they were given and never trust a length: a
// slice that is too short for a structure of fixed size is a mistake of the
// caller, who has checked the PDU's header, and panics; everything that a peer
// can choose comes back as an error.
package wire
