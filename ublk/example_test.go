package ublk_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/swapback/swapback/ublk"
	"golang.org/x/sys/unix"
)

// Serve a block device or a file as /dev/ublkbN for a minute.
func ExampleStart() {
	ctx := context.Background()
	backend, err := ublk.OpenBackend("/dev/nvme0n1")
	if err != nil {
		log.Fatal(err)
	}
	defer backend.Close() // after the device has ended

	device, err := ublk.Start(ctx, backend, ublk.Options{ID: -1, Queues: 2})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(device.Path())
	time.Sleep(time.Minute)
	if err := device.Stop(ctx); err != nil {
		log.Fatal(err)
	}
}

// zeroes is a disk that reads as zeroes and cannot be written.
type zeroes struct{}

func (zeroes) Handle(r *ublk.Request) unix.Errno {
	if r.Op != ublk.OpRead {
		return unix.EIO
	}
	clear(r.Data)
	return 0
}

// Serve requests by Go code.
func ExampleHandler() {
	ctx := context.Background()
	backend, err := ublk.NewHandlerBackend("zeroes", zeroes{}, ublk.Limits{Size: 1 << 30, ReadOnly: true})
	if err != nil {
		log.Fatal(err)
	}
	device, err := ublk.Start(ctx, backend, ublk.Options{ID: -1})
	if err != nil {
		log.Fatal(err)
	}
	defer device.Stop(ctx)
}

// Change what is behind a device while its clients wait.
func ExampleDevice_Hold() {
	ctx := context.Background()
	var device *ublk.Device // a running one

	device.Hold()
	defer device.Release()
	if err := device.Drain(ctx); err != nil {
		log.Fatal(err)
	}
	// Nothing is in flight at the backend now, and nothing will be.
}

// Take over the devices that a killed server has left.
func ExampleAdopt() {
	ctx := context.Background()
	const ours = 0x73776170 // the tag that they were started with
	control, err := ublk.OpenControl(ublk.ControlOptions{})
	if err != nil {
		log.Fatal(err)
	}
	infos, err := control.List(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, info := range infos {
		if info.Tag != ours || info.State == ublk.StateDead {
			continue
		}
		backend, err := ublk.OpenBackend("/dev/nvme0n1") // the same as before
		if err != nil {
			log.Fatal(err)
		}
		if _, err := ublk.Adopt(ctx, backend, ublk.Options{ID: info.ID, Tag: ours, Control: control}); err != nil {
			log.Fatal(err)
		}
	}
}
