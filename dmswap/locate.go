package dmswap

// DiskRange is a run of bytes of a member.
type DiskRange struct {
	Disk           string // path
	Offset, Length int64  // bytes on the disk
}

// Locate says where bytes of a volume lie at this moment, in the order of the
// volume. Bytes behind its end lie nowhere. A swap that comes after changes it.
func (p *Pool) Locate(ref string, offset, length int64) ([]DiskRange, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	v, err := p.find(ref)
	if err != nil {
		return nil, err
	}
	if offset < 0 || offset >= v.Size || length < 1 {
		return nil, nil
	}
	length = min(length, v.Size-offset)
	var list []DiskRange
	for _, x := range mapRange(p.place().members, p.place().extentSize, p.meta.position(v.Position), offset, length) {
		list = append(list, DiskRange{Disk: p.store.members[x.member].path, Offset: x.at, Length: x.length})
	}
	return list, nil
}

// DisksOf lists the disks that a volume lies on at this moment.
func (p *Pool) DisksOf(ref string) ([]string, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	v, err := p.find(ref)
	if err != nil {
		return nil, err
	}
	on := map[int]bool{}
	for _, m := range p.meta.position(v.Position).onMembers() {
		on[m] = true
	}
	var list []string
	for i, m := range p.store.members {
		if on[i] {
			list = append(list, m.path)
		}
	}
	return list, nil
}
