package release

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"
)

// ImageName is what the image's file is called.
func (b Build) ImageName() string { return "weft-image-" + b.Arch + ".tar" }

// Image is a container image of the programs and nothing else, made without a container runtime: an OCI layout with the
// manifest of `docker load` beside it. It runs `weft up` and wants --network host, NET_ADMIN, NET_RAW, SYS_ADMIN and
// /dev/net/tun.
func (b Build) Image() ([]byte, error) {
	var in []File
	for _, name := range programs {
		if f := b.File(name); f != nil {
			in = append(in, File{"usr/bin/" + name, f.Mode, f.Data})
		}
	}
	layer, err := pack(in, b.Time, true)
	if err != nil {
		return nil, err
	}
	plain, err := pack(in, b.Time, false)
	if err != nil {
		return nil, err
	}
	config, err := json.Marshal(imageConfig{
		Architecture: b.Arch, OS: "linux", Created: b.Time.UTC().Format(time.RFC3339),
		Config: imageRun{
			Entrypoint: []string{"/usr/bin/weft"}, Cmd: []string{"up"}, Env: []string{"PATH=/usr/bin"}, WorkingDir: "/",
			Volumes: map[string]struct{}{"/var/lib/weft": {}},
			Labels:  map[string]string{"org.opencontainers.image.title": "weft", "org.opencontainers.image.version": b.Version},
		},
		RootFS: imageRootFS{Type: "layers", DiffIDs: []string{digest(plain)}},
	})
	if err != nil {
		return nil, fmt.Errorf("describe image: %w", err)
	}
	manifest, err := json.Marshal(imageManifest{
		SchemaVersion: 2, MediaType: typeManifest, Config: describe(typeConfig, config, nil),
		Layers: []descriptor{describe(typeLayer, layer, nil)},
	})
	if err != nil {
		return nil, fmt.Errorf("describe image: %w", err)
	}
	tag := "weft:" + b.Version
	index, err := json.Marshal(imageIndex{
		SchemaVersion: 2, MediaType: typeIndex, Manifests: []descriptor{describe(typeManifest, manifest, map[string]string{
			"org.opencontainers.image.ref.name": b.Version, "io.containerd.image.name": "docker.io/library/" + tag,
		})},
	})
	if err != nil {
		return nil, fmt.Errorf("describe image: %w", err)
	}
	docker, err := json.Marshal([]dockerManifest{{blobPath(config), []string{tag}, []string{blobPath(layer)}}})
	if err != nil {
		return nil, fmt.Errorf("describe image: %w", err)
	}
	return pack([]File{
		{"oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{"index.json", 0o644, index},
		{"manifest.json", 0o644, docker},
		{blobPath(config), 0o644, config},
		{blobPath(manifest), 0o644, manifest},
		{blobPath(layer), 0o644, layer},
	}, b.Time, false)
}

const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type imageIndex struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []descriptor `json:"manifests"`
}

type imageManifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type imageConfig struct {
	Architecture string      `json:"architecture"`
	OS           string      `json:"os"`
	Created      string      `json:"created"`
	Config       imageRun    `json:"config"`
	RootFS       imageRootFS `json:"rootfs"`
}

type imageRun struct {
	Entrypoint, Cmd, Env []string
	WorkingDir           string
	Volumes              map[string]struct{}
	Labels               map[string]string
}

type imageRootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func describe(mediaType string, blob []byte, notes map[string]string) descriptor {
	return descriptor{mediaType, digest(blob), len(blob), notes}
}

func digest(blob []byte) string { return "sha256:" + sum(blob) }

func blobPath(blob []byte) string { return "blobs/sha256/" + sum(blob) }

func sum(blob []byte) string {
	h := sha256.Sum256(blob)
	return hex.EncodeToString(h[:])
}
