package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vallum/vallum/internal/config"
	"github.com/vallum/vallum/internal/daemon"
	"github.com/vallum/vallum/internal/policy"
	"github.com/vallum/vallum/internal/store"
)

// stateFlag adds --state, which every command that needs the state directory has.
func stateFlag(c *cobra.Command, dir *string) {
	c.Flags().StringVar(dir, "state", "", "state directory (default: /var/lib/vallum for root, the XDG state folder otherwise)")
	if c.Flags().Lookup("config") != nil {
		return // the command reads the configuration itself
	}
	var file string
	c.Flags().StringVar(&file, "config", "", "the gateway's configuration: its state directory is meant")
	c.PreRunE = func(*cobra.Command, []string) error {
		if file == "" || *dir != "" {
			return nil
		}
		conf, err := readConfig(file, nil)
		var problems *config.Problems
		if errors.As(err, &problems) { // which are another command's business: a key must be revocable meanwhile
			return fmt.Errorf("%s, so it does not say where the state directory is\nhint: --state DIR names it; vallum check --config %s says what is wrong", problems.Error(), file)
		}
		if err != nil {
			return err
		}
		*dir = conf.State
		return nil
	}
}

func stateOrDefault(dir string) (string, error) {
	if dir != "" {
		return dir, nil
	}
	return daemon.StateDir()
}

func newKeys(s streams) *cobra.Command {
	c := &cobra.Command{
		Use:   "keys",
		Short: "Makes, lists, revokes, rotates and imports API keys",
		Long: "Keys live in the state directory's store, as hashes. All of this works while the gateway runs: it sees a change within\n" +
			"a second, and a revoked key's running streams end.",
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newKeysCreate(s), newKeysList(s), newKeysRevoke(s), newKeysRotate(s), newKeysImport(s))
	return c
}

// existing is the state directory of a command that only looks or takes away: a name mistyped must not make a new one.
func existing(dir string) (string, error) {
	dir, err := stateOrDefault(dir)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("there is no state directory %s\nhint: --state DIR names the one of the gateway", dir)
	}
	return dir, nil
}

// withKeys opens the store of an existing state directory.
func withKeys(ctx context.Context, dir string, use func(*store.Store) error) error {
	dir, err := existing(dir)
	if err != nil {
		return err
	}
	return withStore(ctx, dir, use)
}

// withStore opens the state directory's store for one command, and makes both when they are not there yet.
func withStore(ctx context.Context, dir string, use func(*store.Store) error) error {
	dir, err := stateOrDefault(dir)
	if err != nil {
		return err
	}
	st, err := store.Open(ctx, dir)
	if err != nil {
		return err
	}
	return errors.Join(use(st), st.Close())
}

// noteNew says when a state directory is about to be made: where it was mistyped, the key would open nothing.
func (s streams) noteNew(dir string) {
	dir, err := stateOrDefault(dir)
	if err != nil {
		return
	}
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		fmt.Fprintf(s.err, "vallum: the state directory %s is new: a gateway with another one does not know its keys\n", dir)
	}
}

// wanted are the flags that say what a key is to be.
type wanted struct {
	name, tenant, expires, note string
	roles                       []string
}

func (w *wanted) flags(c *cobra.Command) {
	c.Flags().StringVar(&w.name, "name", "", "what the key is called in lists and records")
	c.Flags().StringSliceVar(&w.roles, "role", nil, "role of the key; may be given more than once (built in: inference, monitor, operator)")
	c.Flags().StringVar(&w.tenant, "tenant", "", "whose data it is: tenants share no prefix cache (default: the key's name)")
	c.Flags().StringVar(&w.expires, "expires", "", "how long it is good: 90d, 24h (default: for ever)")
	c.Flags().StringVar(&w.note, "note", "", "a note for people")
}

func (w *wanted) key(c *cobra.Command, now time.Time) (store.NewKey, error) {
	if w.name == "" || len(w.roles) == 0 {
		return store.NewKey{}, usagef("a key needs a name and a role\nhint: %s --name NAME --role inference", c.CommandPath())
	}
	k := store.NewKey{Name: w.name, Tenant: w.tenant, Roles: w.roles, Note: w.note}
	if w.expires != "" {
		d, err := config.ParseDuration(w.expires)
		if err != nil {
			return k, usagef("--expires: %w", err)
		}
		k.Expires = now.Add(d)
	}
	if err := k.Check(now); err != nil {
		return k, usageError{err}
	}
	return k, nil
}

// warnRoles says when a role is one that the gateway does not have. It does not refuse: the role may come with the next
// configuration.
func (s streams) warnRoles(dir string, roles []string) {
	dir, err := stateOrDefault(dir)
	if err != nil {
		return
	}
	known := slices.Sorted(maps.Keys(policy.BuiltIn))
	if conf, err := readConfig(filepath.Join(dir, daemon.EffectiveFile), nil); err == nil {
		known = append(known, slices.Sorted(maps.Keys(conf.Roles))...)
	}
	for _, role := range roles {
		if !slices.Contains(known, role) {
			fmt.Fprintf(s.err, "vallum: warning: there is no role %q now: the key can do nothing by it until the configuration has it\n", role)
			s.hint("roles now: %s", strings.Join(known, ", "))
		}
	}
}

func newKeysCreate(s streams) *cobra.Command {
	var dir string
	var w wanted
	var asJSON bool
	c := &cobra.Command{
		Use:     "create --name NAME --role ROLE",
		Short:   "Makes a key and prints it: this once",
		Example: "  vallum keys create --name app --role inference --expires 90d",
		RunE: func(c *cobra.Command, _ []string) error {
			now := time.Now()
			want, err := w.key(c, now)
			if err != nil {
				return err
			}
			s.noteNew(dir)
			s.warnRoles(dir, want.Roles)
			return withStore(c.Context(), dir, func(st *store.Store) error {
				secret, key, err := st.CreateKey(c.Context(), want, now)
				if err != nil {
					return err
				}
				return s.printKey(secret, key, asJSON)
			})
		},
	}
	w.flags(c)
	stateFlag(c, &dir)
	c.Flags().BoolVar(&asJSON, "json", false, "print the key and what is known of it as JSON")
	return c
}

// printKey prints a new key. When that fails nobody has it, and it says how to get another in its place.
func (s streams) printKey(secret string, key store.Key, asJSON bool) error {
	if err := s.writeKey(secret, key, asJSON); err != nil {
		return fmt.Errorf("key %s (%s) is made, and could not be printed: %w\nhint: vallum keys rotate %s makes another in its place", key.Name, key.ID, err, key.Name)
	}
	return nil
}

// writeKey writes the secret alone on stdout, so that a script can take it, and the rest on stderr.
func (s streams) writeKey(secret string, key store.Key, asJSON bool) error {
	if asJSON {
		return s.printJSON(struct {
			Secret string `json:"key"`
			store.Key
		}{secret, key})
	}
	if _, err := fmt.Fprintln(s.out, secret); err != nil {
		return err
	}
	until := "for ever"
	if !key.Expires.IsZero() {
		until = "until " + key.Expires.UTC().Format(time.DateOnly)
	}
	fmt.Fprintf(s.err, "key %s (%s) with role %s, good %s\n", key.Name, key.ID, strings.Join(key.Roles, ", "), until)
	fmt.Fprintln(s.err, "It is shown this once: only its hash is kept.")
	return nil
}

func newKeysList(s streams) *cobra.Command {
	var dir string
	var all, asJSON bool
	c := &cobra.Command{
		Use:   "list",
		Short: "Lists the keys; never the keys themselves",
		RunE: func(c *cobra.Command, _ []string) error {
			return withKeys(c.Context(), dir, func(st *store.Store) error {
				keys, err := st.ListKeys(c.Context())
				if err != nil {
					return err
				}
				now := time.Now()
				shown := []store.Key{}
				for _, k := range keys {
					if all || k.Live(now) {
						shown = append(shown, k)
					}
				}
				if asJSON {
					return s.printJSON(shown)
				}
				return s.tableOfKeys(shown, now)
			})
		},
	}
	stateFlag(c, &dir)
	c.Flags().BoolVar(&all, "all", false, "revoked and expired keys too")
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return c
}

func (s streams) tableOfKeys(keys []store.Key, now time.Time) error {
	if len(keys) == 0 {
		fmt.Fprintln(s.err, "no keys")
		s.hint("vallum keys create --name NAME --role inference")
		return nil
	}
	w := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tNAME\tTENANT\tROLES\tSTATE\tLAST USED")
	for _, k := range keys {
		used := "never"
		if !k.LastUsed.IsZero() {
			used = k.LastUsed.UTC().Format("2006-01-02 15:04")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", k.ID, k.Name, k.Tenant, strings.Join(k.Roles, ","), stateWord(k, now), used)
	}
	return w.Flush()
}

// stateWord is whether a key opens anything, in a word and a day.
func stateWord(k store.Key, now time.Time) string {
	switch {
	case !k.Revoked.IsZero():
		return "revoked " + k.Revoked.UTC().Format(time.DateOnly)
	case !k.Live(now):
		return "expired " + k.Expires.UTC().Format(time.DateOnly)
	case !k.Expires.IsZero():
		return "until " + k.Expires.UTC().Format(time.DateOnly)
	}
	return "live"
}

func newKeysRevoke(s streams) *cobra.Command {
	var dir string
	var asJSON bool
	c := &cobra.Command{
		Use:   "revoke ID|NAME",
		Short: "Ends a key at once, and its running requests",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withKeys(c.Context(), dir, func(st *store.Store) error {
				gone, err := st.RevokeKey(c.Context(), args[0], time.Now())
				if err != nil {
					return noSuchKey(err)
				}
				if asJSON {
					return s.printJSON(gone)
				}
				for _, k := range gone {
					fmt.Fprintf(s.out, "revoked %s (%s)\n", k.Name, k.ID)
				}
				return nil
			})
		},
	}
	stateFlag(c, &dir)
	c.Flags().BoolVar(&asJSON, "json", false, "print what is known of the revoked keys as JSON")
	return c
}

// noSuchKey adds where the keys' names are found.
func noSuchKey(err error) error {
	if errors.Is(err, store.ErrNoSuchKey) {
		return fmt.Errorf("%w\nhint: vallum keys list --all", err)
	}
	return err
}

func newKeysRotate(s streams) *cobra.Command {
	var dir, overlap string
	var asJSON bool
	c := &cobra.Command{
		Use:     "rotate ID|NAME",
		Short:   "Makes a new key in the place of one; both are good for the overlap",
		Example: "  vallum keys rotate app --overlap 24h",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			var both time.Duration
			if overlap != "" {
				var err error
				if both, err = config.ParseDuration(overlap); err != nil {
					return usagef("--overlap: %w", err)
				}
			}
			return withKeys(c.Context(), dir, func(st *store.Store) error {
				secret, key, err := st.RotateKey(c.Context(), args[0], both, time.Now())
				if err != nil {
					return noSuchKey(err)
				}
				return s.printKey(secret, key, asJSON)
			})
		},
	}
	stateFlag(c, &dir)
	c.Flags().StringVar(&overlap, "overlap", "", "how long the old key stays good: 24h (default: it ends at once)")
	c.Flags().BoolVar(&asJSON, "json", false, "print the key and what is known of it as JSON")
	return c
}

func newKeysImport(s streams) *cobra.Command {
	var dir string
	var w wanted
	var asJSON bool
	c := &cobra.Command{
		Use:     "import --name NAME --role ROLE < FILE",
		Short:   "Takes a key (sk-…) from standard input; only its hash is kept",
		Example: "  vallum keys import --name old-app --role inference < old-key.txt",
		RunE: func(c *cobra.Command, _ []string) error {
			now := time.Now()
			want, err := w.key(c, now)
			if err != nil {
				return err
			}
			b, err := io.ReadAll(io.LimitReader(s.in, 64<<10))
			if err != nil {
				return fmt.Errorf("reading the key: %w", err)
			}
			values := strings.Fields(string(b))
			if len(values) != 1 {
				return usagef("standard input holds %d keys: give one, for a name is one key's\nhint: %s --name NAME --role ROLE < FILE", len(values), c.CommandPath())
			}
			value := values[0]
			s.noteNew(dir)
			s.warnRoles(dir, want.Roles)
			return withStore(c.Context(), dir, func(st *store.Store) error {
				key, err := st.ImportKey(c.Context(), value, want, now)
				if err != nil {
					return err
				}
				if asJSON {
					return s.printJSON(key)
				}
				fmt.Fprintf(s.out, "%s\n", key.ID)
				fmt.Fprintf(s.err, "imported %s (%s) with role %s\n", key.Name, key.ID, strings.Join(key.Roles, ", "))
				return nil
			})
		},
	}
	w.flags(c)
	stateFlag(c, &dir)
	c.Flags().BoolVar(&asJSON, "json", false, "print what is known of the key as JSON")
	return c
}
