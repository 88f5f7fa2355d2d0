//go:build vm

package ublk

import (
	"reflect"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
)

// The structures must be those of the kernel that runs, by its own description.
func TestStructsMatchTheKernelsBTF(t *testing.T) {
	spec, err := btf.LoadKernelModuleSpec("ublk_drv")
	if err != nil {
		t.Fatal(err)
	}
	have := features(t)
	// What came after 6.12, with a feature that came with it or later.
	type later struct {
		flags  Features
		kernel string
	}
	since := map[string]later{
		"ublk_param_dma_align": {AutoBufReg, "6.16"},
		"ublk_param_segment":   {AutoBufReg, "6.16"},
		"ublk_batch_io":        {BatchIO, "7.0"},
		"ublk_elem_header":     {BatchIO, "7.0"},
	}
	for name, v := range map[string]any{
		"ublksrv_ctrl_cmd":      ctrlCmd{},
		"ublksrv_ctrl_dev_info": devInfo{},
		"ublksrv_io_desc":       ioDesc{},
		"ublksrv_io_cmd":        ioCmd{},
		"ublk_param_basic":      paramBasic{},
		"ublk_param_discard":    paramDiscard{},
		"ublk_param_devt":       paramDevt{},
		"ublk_params":           params{},
		"ublk_param_zoned":      paramZoned{},
		"ublk_param_dma_align":  paramDMAAlign{},
		"ublk_param_segment":    paramSegment{},
		"ublk_batch_io":         batchIO{},
		"ublk_elem_header":      batchElem{},
	} {
		if later := since[name]; later.flags != 0 && !have.Has(later.flags) {
			mustBeOlder(t, later.kernel)
			continue
		}
		var c *btf.Struct
		if err := spec.TypeByName(name, &c); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		offsets := map[string]uintptr{}
		for _, m := range c.Members {
			offsets[plain(m.Name)] = uintptr(m.Offset.Bytes())
			if u, ok := btf.UnderlyingType(m.Type).(*btf.Union); ok && m.Name == "" {
				for _, um := range u.Members {
					offsets[plain(um.Name)] = uintptr(m.Offset.Bytes() + um.Offset.Bytes())
				}
			}
		}
		typ := reflect.TypeOf(v)
		// ublk_params goes on behind what is declared here.
		if name != "ublk_params" && typ.Size() != uintptr(c.Size) {
			t.Errorf("%s: %d bytes, the kernel's has %d", name, typ.Size(), c.Size)
		}
		for _, f := range reflect.VisibleFields(typ) {
			if f.Name == "_" {
				continue
			}
			off, ok := offsets[plain(f.Name)]
			if f.Name == "IODescSize" && !ok {
				off, ok = offsets["pad0"] // before 7.3
			}
			if !ok && name == "ublk_params" && (f.Name == "DMA" || f.Name == "Seg") && !have.Has(AutoBufReg) {
				mustBeOlder(t, "6.16")
				continue
			}
			if !ok {
				t.Errorf("%s.%s: the kernel has no such member", name, f.Name)
			} else if off != f.Offset {
				t.Errorf("%s.%s at %d, the kernel's is at %d", name, f.Name, f.Offset, off)
			}
		}
	}
}

// plain makes C and Go spellings of one name equal.
func plain(name string) string {
	name = strings.ToLower(strings.ReplaceAll(name, "_", ""))
	if name == "virtboundarymask" {
		return "virtboundary"
	}
	return name
}
