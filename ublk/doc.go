// Package ublk serves block devices from user space through the kernel's
// ublk_drv: /dev/ublkbN appears, and its requests reach a backend chosen here.
package ublk
