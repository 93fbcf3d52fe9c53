//go:build race

package mesh

// RaceEnabled tells tests that they run ten times slower.
const RaceEnabled = true
