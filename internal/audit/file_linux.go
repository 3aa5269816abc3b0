package audit

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// allocate takes blocks without writing them; errors.ErrUnsupported where the file system cannot.
func allocate(f *os.File, size int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return errors.ErrUnsupported
	}
	return err
}
