package netlab

import (
	"os"
	"strconv"
	"time"
)

// SlowEnv tells tests how many times slower than others the machine is that they run on: virtual machines that are emulated
// set it.
const SlowEnv = "WEFT_TEST_SLOW"

// Slow is that number; 1 where nothing is said.
func Slow() int {
	if n, err := strconv.Atoi(os.Getenv(SlowEnv)); err == nil && n > 1 {
		return n
	}
	return 1
}

// Patience is how long to wait on this machine for what takes d at most on others. It costs nothing where all goes well.
func Patience(d time.Duration) time.Duration { return time.Duration(Slow()) * d }
