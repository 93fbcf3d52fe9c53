//go:build race

package meshsim_test

// raceEnabled tells tests that they run ten times slower.
const raceEnabled = true
