package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/urfave/cli/v2"

	"weft/prog/control"
	"weft/prog/weftd"
)

// globalFlags are those that mean the same for every command.
func globalFlags() []cli.Flag {
	flags := []cli.Flag{settingFlag(weftd.Setting{
		Key: "config", Env: "WEFT_CONFIG", Arg: "FILE",
		Help: "configuration file (default " + weftd.DefaultConfig + ", if it exists)",
	})}
	for _, s := range weftd.Settings() {
		if s.Global {
			flags = append(flags, settingFlag(s))
		}
	}
	return flags
}

// settingFlags are the flags of the settings with these keys; without keys, of all that belong to `up`.
func settingFlags(keys ...string) []cli.Flag {
	var flags []cli.Flag
	for _, s := range weftd.Settings() {
		if slices.Contains(keys, s.Key) || len(keys) == 0 && !s.Global {
			flags = append(flags, settingFlag(s))
		}
	}
	return flags
}

// settingFlag leaves checking to the setting, which knows the right words, and the variable to override, which knows
// whether a flag was there; cli is told of the variable only to show it.
func settingFlag(s weftd.Setting) cli.Flag {
	if s.Arg == "" {
		return &cli.BoolFlag{Name: s.Key, Usage: s.Help}
	}
	f := &cli.StringFlag{Name: s.Key, Usage: "`" + s.Arg + "` " + s.Help}
	if s.Env == "" {
		return f
	}
	return &documentedFlag{StringFlag: f, env: s.Env}
}

// documentedFlag shows a variable that cli must not read.
type documentedFlag struct {
	*cli.StringFlag
	env string
}

// GetEnvVars is for the help.
func (f *documentedFlag) GetEnvVars() []string { return []string{f.env} }

// fileConfig reads the configuration file, of which only one that was asked for has to exist, and then the variables
// and flags that are in force for every command.
func (a *app) fileConfig(c *cli.Context) (weftd.Config, error) {
	var cfg weftd.Config
	name, asked := a.configFile(c)
	if err := cfg.Load(name); err != nil && (asked || !errors.Is(err, fs.ErrNotExist)) {
		return weftd.Config{}, err
	}
	return cfg, nil
}

// configFile names the file, and whether somebody asked for it by name.
func (a *app) configFile(c *cli.Context) (string, bool) {
	if c.IsSet("config") {
		return c.String("config"), true
	}
	if name, ok := a.lookup("WEFT_CONFIG"); ok && name != "" {
		return name, true
	}
	return weftd.DefaultConfig, false
}

// clientConfig is what a command needs that only talks to the daemon. It forgives a file that the caller may not read,
// unless they named it: members of the group may look at the status, and the file need not be open to them.
func (a *app) clientConfig(c *cli.Context) (weftd.Config, error) {
	cfg, err := a.fileConfig(c)
	if _, asked := a.configFile(c); err != nil && (asked || !errors.Is(err, fs.ErrPermission)) {
		return weftd.Config{}, configError(err)
	}
	if err := a.override(c, &cfg, false); err != nil {
		return weftd.Config{}, err
	}
	cfg.Socket = cmp.Or(cfg.Socket, weftd.DefaultSocket)
	return cfg, nil
}

// daemonConfig is everything that the daemon is told. It is not completed yet.
func (a *app) daemonConfig(c *cli.Context) (weftd.Config, error) {
	cfg, err := a.fileConfig(c)
	if err != nil {
		return weftd.Config{}, configError(err)
	}
	if err := a.override(c, &cfg, true); err != nil {
		return weftd.Config{}, err
	}
	cfg.Stdin = a.stdin
	return cfg, nil
}

// override applies the variables, then the flags. Without all only the settings that every command shares count.
func (a *app) override(c *cli.Context, cfg *weftd.Config, all bool) error {
	for _, s := range weftd.Settings() {
		if !s.Global && !all {
			continue
		}
		if v, ok := a.lookup(s.Env); ok && s.Env != "" && v != "" {
			if err := s.Set(cfg, v); err != nil {
				return usage(fmt.Sprintf("%s: %s", s.Env, withoutKey(err)))
			}
		}
	}
	return flagsInto(c, cfg, all)
}

// flagsInto applies the flags that were given. Without all, --name may well mean something else.
func flagsInto(c *cli.Context, cfg *weftd.Config, all bool) error {
	for _, s := range weftd.Settings() {
		if !c.IsSet(s.Key) || !s.Global && !all {
			continue
		}
		value := fmt.Sprint(c.Value(s.Key))
		if err := s.Set(cfg, value); err != nil {
			return usage(fmt.Sprintf("--%s: %s", s.Key, withoutKey(err)))
		}
	}
	return nil
}

// withoutKey is the reason of an error of Setting.Set: the flag or the variable stands in for the key.
func withoutKey(err error) string {
	if inner := errors.Unwrap(err); inner != nil {
		return inner.Error()
	}
	return err.Error()
}

func configError(err error) error {
	return &control.Error{Code: control.Usage, Message: err.Error(), Hint: "Try: weft config check"}
}
