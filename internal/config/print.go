package config

import (
	"fmt"
	"time"

	"go.yaml.in/yaml/v4"
)

// Print writes the effective configuration, every default included, as a file that Parse reads again.
func (c *Config) Print() ([]byte, error) {
	b, err := yaml.Dump(c, yaml.WithIndent(2))
	if err != nil {
		return nil, fmt.Errorf("printing the configuration: %w", err)
	}
	return append([]byte("# the effective configuration, with every default; null and empty values are absent\n"), b...), nil
}

// MarshalYAML writes a length of time as Parse reads it.
func (d Duration) MarshalYAML() (any, error) {
	if d == 0 {
		return nil, nil
	}
	return d.String(), nil
}

// String is the length of time as it is written in the file: in days when it is whole days.
func (d Duration) String() string {
	t := time.Duration(d)
	if day := 24 * time.Hour; t >= day && t%day == 0 {
		return fmt.Sprintf("%dd", t/day)
	}
	return t.String()
}

// MarshalYAML writes a limit, and none as absent.
func (c Count) MarshalYAML() (any, error) {
	if c == 0 {
		return nil, nil
	}
	return int64(c), nil
}

// MarshalYAML writes a size as Parse reads it.
func (s Size) MarshalYAML() (any, error) {
	if s == 0 {
		return nil, nil
	}
	return s.String(), nil
}

// String is the size in the largest unit that divides it.
func (s Size) String() string {
	switch {
	case s >= 1<<30 && s%(1<<30) == 0:
		return fmt.Sprintf("%dGiB", s>>30)
	case s >= 1<<20 && s%(1<<20) == 0:
		return fmt.Sprintf("%dMiB", s>>20)
	case s >= 1<<10 && s%(1<<10) == 0:
		return fmt.Sprintf("%dKiB", s>>10)
	}
	return fmt.Sprint(int64(s))
}

// MarshalYAML writes the reference, never a secret.
func (s Secret) MarshalYAML() (any, error) {
	if s.IsZero() {
		return nil, nil
	}
	return s.String(), nil
}

// MarshalYAML writes an operation as its id alone where no acknowledgement stands beside it.
func (o Operation) MarshalYAML() (any, error) {
	if o.Acknowledge == "" {
		return o.ID, nil
	}
	type plain Operation
	return plain(o), nil
}
