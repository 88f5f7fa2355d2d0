package backup

import "context"

// seekHealed reads the manifest again when something could not be read back: a heal puts
// it elsewhere and has the manifest say where, see moving.go. The lease makes the new
// places as good as the old ones: it is older than the manifest that names them.
func (im *Image) seekHealed(ctx context.Context) {
	im.mu.Lock()
	bad := len(im.bad) > 0
	im.mu.Unlock()
	if !bad {
		return
	}
	b, err := im.r.readManifest(ctx, im.b.ID)
	if err == nil {
		err = im.follow(b)
	}
	if err != nil {
		im.log.Debug("the manifest of a damaged image can't be read again", "backup", im.b.ID, "err", err)
	}
}
