package reserve

import "github.com/swapback/swapback/nvmeof/wire"

// notices tells which hosts are to hear of what a command of another host has done (NVM
// Express Base 8.19.5 to 8.19.8): those whose registration it has ended, and, where what
// registrants may do has changed with the reservation, those that still are.
func notices(op wire.Opcode, by Host, before, after *State, tell func(Host, wire.NoticeKind)) {
	ended := wire.RegistrationPreempted
	if op == wire.OpResvRelease { // Clear
		ended = wire.ReservationPreempted
	}
	for _, g := range before.Registrants {
		switch stays := after.find(g.Host) != nil; {
		case g.Host == by:
		case !stays:
			tell(g.Host, ended)
		case before.Type != 0 && after.Type != before.Type && (op == wire.OpResvAcquire || !single(before.Type)):
			tell(g.Host, wire.ReservationReleased)
		}
	}
}
