// Package auth is DH-HMAC-CHAP, by which NVMe hosts and controllers prove to each
// other that they know a secret (NVM Express Base Specification 2.0, 8.13.5). It knows
// messages and no connections: a target hands what Authentication Send brings to a
// Controller, and gets from it what Authentication Receive is to return.
//
//	host                              controller
//	Negotiate   hashes, groups  ->
//	                            <-    Challenge   C1, g^x
//	Reply       R1, C2, g^y     ->
//	                            <-    Success1    R2, or Failure1
//	Success2, or Failure2       ->                when C2 was sent
//
// R1 proves the host's secret and R2 the controller's, over the challenge, which with
// a group has the exchanged key in it; so who listens learns nothing to guess secrets
// by. Nothing that follows is encrypted.
//
// Modular exponentiation is that of math/big, which takes a time that depends on the
// exponent; exponents are used once.
package auth
