package release

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// BOMName is what the bill of materials is called.
func (b Build) BOMName() string { return "weft-linux-" + b.Arch + ".cdx.json" }

// BOM lists the modules that are linked into the programs, in CycloneDX: exactly
// what the linker wrote down, not what a go.mod might mean.
func (b Build) BOM() ([]byte, error) {
	components := map[string]component{}
	for _, name := range programs {
		f := b.File(name)
		if f == nil {
			continue
		}
		info, err := buildinfo.Read(bytes.NewReader(f.Data))
		if err != nil {
			return nil, fmt.Errorf("read build information of %s: %w", name, err)
		}
		toolchain := strings.TrimPrefix(info.GoVersion, "go")
		add(components, "std", toolchain, "pkg:golang/std@"+toolchain)
		for _, d := range info.Deps {
			for d.Replace != nil {
				d = d.Replace
			}
			add(components, d.Path, d.Version, "pkg:golang/"+d.Path+"@"+d.Version)
		}
	}
	doc := bom{
		Format: "CycloneDX", Spec: "1.5", Version: 1,
		Metadata: metadata{
			Timestamp: b.Time.UTC().Format("2006-01-02T15:04:05Z"),
			Component: component{Type: "application", Name: "weft", Version: b.Version},
		},
	}
	for _, key := range slices.Sorted(maps.Keys(components)) {
		doc.Components = append(doc.Components, components[key])
	}
	out, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write bill of materials: %w", err)
	}
	return append(out, '\n'), nil
}

func add(to map[string]component, name, version, url string) {
	to[url] = component{Type: "library", Name: name, Version: version, URL: url}
}

type bom struct {
	Format     string      `json:"bomFormat"`
	Spec       string      `json:"specVersion"`
	Version    int         `json:"version"`
	Metadata   metadata    `json:"metadata"`
	Components []component `json:"components"`
}

type metadata struct {
	Timestamp string    `json:"timestamp"`
	Component component `json:"component"`
}

type component struct {
	Type    string `json:"type"`
	Name    string `json:"name"`
	Version string `json:"version"`
	URL     string `json:"purl,omitempty"`
}
