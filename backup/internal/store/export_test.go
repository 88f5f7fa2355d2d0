package store

// SetHook sets the function that is called before every step of f.
func SetHook(f *Folder, hook func(step, name string) error) { f.hook = hook }
