package netlab

import (
	"fmt"
	"os"
	"os/exec"
)

// Build compiles programs of this module into dir, static, under the names of their folders; packages are import paths.
// Tests call it once, in TestMain.
func Build(dir string, packages ...string) error {
	cmd := exec.Command("go", append([]string{"build", "-trimpath", "-buildvcs=false", "-o", dir + "/"}, packages...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %v: %w\n%s", packages, err, out)
	}
	return nil
}
