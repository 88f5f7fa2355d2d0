package hostagent

import (
	"context"
	"slices"

	"github.com/swapback/swapback/backup"
)

// Forget deletes the backups of a job that carry a tag, all but the newest
// keep. It returns the ids of those that are gone, also with an error.
func Forget(ctx context.Context, repo *backup.Repository, job, tag string, keep int) ([]string, error) {
	all, err := repo.List(ctx)
	if err != nil {
		return nil, err
	}
	var own []string
	for _, b := range all {
		if b.Damaged == "" && b.Job == job && slices.Contains(b.Tags, tag) {
			own = append(own, b.ID)
		}
	}
	if len(own) <= keep {
		return nil, nil
	}
	deleted, _, err := repo.Delete(ctx, own[:len(own)-keep]...)
	return deleted, err
}
