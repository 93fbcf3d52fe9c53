//go:build race

package ring

// raceEnabled tells tests that they run ten times slower.
const raceEnabled = true
