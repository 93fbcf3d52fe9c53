// Package drawing turns a control.Graph into a picture: Graphviz's language, SVG, or one HTML page. It is pure: the same
// answer makes the same picture, byte for byte. Asking for the answer, and where the picture goes, is left to others.
//
// Members stand on a circle, ordered so that those near to each other by round trip stand side by side. A pair's colour and
// dash say how it is joined, so that it can be told without colours; direct pairs are the paper, all else is on top of it.
// Pictures follow the reader's light or dark setting, and load nothing from anywhere: the page forbids itself to.
package drawing
