package main

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// card is what the kernel calls the machine's only network card: no udev renames it.
const card = "eth0"

// networkUp brings up the loopback device, and the card under its address if there
// is to be one.
func networkUp(address string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring up the network: %w", err)
	}
	defer unix.Close(fd)
	if err := linkUp(fd, "lo"); err != nil || address == "" {
		return err
	}
	prefix, err := netip.ParsePrefix(address)
	if err != nil {
		return fmt.Errorf("bring up %s: %w", card, err)
	}
	if err := waitForCard(10 * time.Second); err != nil {
		return err
	}
	for _, set := range []struct { // in this order: an address brings a mask of its own
		request uint
		value   []byte
	}{
		{unix.SIOCSIFADDR, prefix.Addr().AsSlice()},
		{unix.SIOCSIFNETMASK, net.CIDRMask(prefix.Bits(), 32)},
	} {
		req, err := unix.NewIfreq(card)
		if err == nil {
			err = req.SetInet4Addr(set.value)
		}
		if err == nil {
			err = unix.IoctlIfreq(fd, set.request, req)
		}
		if err != nil {
			return fmt.Errorf("give %s the address %s: %w", card, address, err)
		}
	}
	return linkUp(fd, card)
}

// linkUp is "ip link set NAME up".
func linkUp(fd int, name string) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	return nil
}

// waitForCard waits until the driver has found the card.
func waitForCard(limit time.Duration) error {
	for deadline := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
		if _, err := net.InterfaceByName(card); err == nil {
			return nil
		} else if time.Now().After(deadline) {
			return fmt.Errorf("the network card did not appear within %s: %w", limit, err)
		}
	}
}
