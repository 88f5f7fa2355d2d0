// Package disks runs the real daemon on disks that fail: sectors that answer
// with errors, disks that take no writes, metadata that reads back wrong, and
// disks that do not answer at all.
//
// Each member is a device-mapper device whose table a test changes under the
// running pool: error, dm-flakey and dm-delay stand in for dm-dust, which the
// kernels of the test machine do not have.
package disks
