package ublk

// HoldAll closes the gates of several devices as Hold does, RefuseAll as Refuse
// does, and ReleaseAll opens them. All gates have changed before the first queue
// is woken: a queue that gets to work keeps the caller, on a busy machine, from
// going on to the next device.
func HoldAll(devices ...*Device) { setGates(devices, gateHold) }

// RefuseAll is like HoldAll.
func RefuseAll(devices ...*Device) { setGates(devices, gateRefuse) }

// ReleaseAll is like HoldAll.
func ReleaseAll(devices ...*Device) { setGates(devices, gateServe) }

func setGates(devices []*Device, s gateState) {
	var changed []*Device
	for _, d := range devices {
		if d.gate.set(s) {
			changed = append(changed, d)
		}
	}
	for _, d := range changed {
		d.wake()
	}
}
