package translate

// Files is what the companion writes before the containers start, and again
// when an object changes. Paths are the companion's own.
type Files struct {
	Volumes []FileVolume
	Dirs    []Dir
	Disks   []Disk
	// Guest is the MAC of a VM's guest that is to have the pod's address, empty
	// for none.
	Guest string
	// Items are the sources of the files' contents.
	Items []Item
}

// FileVolume is a directory whose files change at once.
type FileVolume struct {
	Path  string
	GID   *int64 // that owns it, root's without
	Files []VolumeFile
}

// VolumeFile holds an item's value, or Data when Item is empty.
type VolumeFile struct {
	Path string
	Item string // key of an item
	Data string
	Mode int32
}

// Disk is one of a VM's, made once before it starts. It begins as a copy of Base,
// or empty, or holds Files.
type Disk struct {
	Path string
	// Base is an image, qcow2 or raw, of which only what the VM changes is stored
	// in the disk; Backing is how qemu names it, relative to the disk or absolute, and
	// Image the user.
	Base, Backing, Image string
	// SizeMB is the disk's size, 0 for the image's.
	SizeMB int64
	// Raw disks have no format, and are kept when the pod goes; of those that are
	// ReadOnly none is made.
	Raw, ReadOnly bool
	// Label is the name of the file system (ISO 9660) that Files lie on.
	Label string
	// Archive is set for a disk that is an archive (tar) of Files and Program, and
	// is kept current.
	Archive bool
	Files   []VolumeFile
	Program *Program
}

// Program is a container's process, in a VM: its environment, and the words of its
// command, none for what the VM itself starts.
type Program struct {
	Env   []Variable
	Words []Value
	// Dir is the command's working directory, and Message the file of its
	// termination message.
	Dir, Message string
}

// Variable is one of the environment.
type Variable struct {
	Name  string
	Value Value
}

// Value is put together from parts.
type Value []Part

// Part of a value: Text, or an item's value, or a variable in the companion's
// environment.
type Part struct{ Text, Item, Run string }

// Dir is a directory for the containers to write in.
type Dir struct {
	Path string
	GID  *int64
	Mode uint32
	// Kept directories that are there keep their mode and owner, but that they are
	// given to the group, if there is one.
	Kept bool
}
