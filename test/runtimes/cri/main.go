// Command cri asks a container runtime for pods as a kubelet does, over the Container Runtime Interface, and says on stdout
// what came of it, as JSON. It is a module of its own, so that weft does not depend on what Kubernetes depends on.
//
//	cri up -n 10 -parallel 4 -prefix a- [-port 8080:80] [-image IMAGE CMD…]   make pods; with -image a container in each
//	cri down [ID…]                                                          stop and remove them; all when none is named
//	cri list                                                                which there are
//	cri status                                                              whether the runtime can make pods
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pod is one line of an answer.
type Pod struct {
	Name  string   `json:"name"`
	ID    string   `json:"id"`
	IPs   []string `json:"ips"`
	Ready bool     `json:"ready"`
	Took  float64  `json:"took_ms"` // of RunPodSandbox, or of stopping and removing
	Error string   `json:"error,omitempty"`
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "cri:", err)
		os.Exit(1)
	}
}

type client struct {
	cri.RuntimeServiceClient
	ctx context.Context
}

func run(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("up, down, list or status")
	}
	flags := flag.NewFlagSet("cri", flag.ContinueOnError)
	socket := flags.String("socket", "unix:///run/containerd/containerd.sock", "")
	n := flags.Int("n", 1, "pods")
	parallel := flags.Int("parallel", 1, "at once")
	prefix := flags.String("prefix", "pod-", "of their names")
	port := flags.String("port", "", "HOST:POD, in the first")
	image := flags.String("image", "", "of a container in each; then its command")
	limit := flags.Duration("timeout", 2*time.Minute, "of everything")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	conn, err := grpc.NewClient(*socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), *limit)
	defer cancel()
	c := client{cri.NewRuntimeServiceClient(conn), ctx}
	var pods []Pod
	switch args[0] {
	case "up":
		pods = c.up(*n, *parallel, *prefix, *port, *image, flags.Args())
	case "down":
		ids := flags.Args()
		if len(ids) == 0 {
			all, err := c.list()
			if err != nil {
				return err
			}
			for _, p := range all {
				ids = append(ids, p.ID)
			}
		}
		pods = each(len(ids), *parallel, func(i int) Pod { return c.down(ids[i]) })
	case "list":
		if pods, err = c.list(); err != nil {
			return err
		}
	case "status":
		return c.status()
	default:
		return fmt.Errorf("no command %q", args[0])
	}
	if err := json.NewEncoder(os.Stdout).Encode(pods); err != nil {
		return err
	}
	for _, p := range pods {
		if p.Error != "" {
			return fmt.Errorf("%s: %s", p.Name, p.Error)
		}
	}
	return nil
}

// each calls f for 0 to n-1, so many at once.
func each(n, parallel int, f func(int) Pod) []Pod {
	pods := make([]Pod, n)
	slots := make(chan struct{}, parallel)
	var wg sync.WaitGroup
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() { defer func() { <-slots }(); pods[i] = f(i) })
	}
	wg.Wait()
	return pods
}

func (c client) up(n, parallel int, prefix, port, image string, command []string) []Pod {
	return each(n, parallel, func(i int) Pod {
		name := fmt.Sprintf("%s%d", prefix, i)
		conf := &cri.PodSandboxConfig{
			Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "default", Uid: fmt.Sprintf("%s-%d", name, time.Now().UnixNano())},
			LogDirectory: os.TempDir(),
			Linux:        &cri.LinuxPodSandboxConfig{CgroupParent: "/cri"},
		}
		var host, inside int32
		if _, err := fmt.Sscanf(port, "%d:%d", &host, &inside); err == nil && i == 0 {
			conf.PortMappings = []*cri.PortMapping{{Protocol: cri.Protocol_TCP, ContainerPort: inside, HostPort: host}}
		}
		p, err := c.make(conf, image, command)
		p.Name = name
		if err != nil {
			p.Error = err.Error()
		}
		return p
	})
}

func (c client) make(conf *cri.PodSandboxConfig, image string, command []string) (p Pod, err error) {
	start := time.Now()
	made, err := c.RunPodSandbox(c.ctx, &cri.RunPodSandboxRequest{Config: conf})
	p.Took = float64(time.Since(start).Microseconds()) / 1000
	if err != nil {
		return p, err
	}
	p.ID = made.PodSandboxId
	st, err := c.PodSandboxStatus(c.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.ID})
	if err != nil {
		return p, err
	}
	p.Ready = st.Status.State == cri.PodSandboxState_SANDBOX_READY
	p.IPs = []string{st.Status.Network.Ip}
	for _, ip := range st.Status.Network.AdditionalIps {
		p.IPs = append(p.IPs, ip.Ip)
	}
	if image == "" {
		return p, nil
	}
	ctr, err := c.CreateContainer(c.ctx, &cri.CreateContainerRequest{
		PodSandboxId: p.ID, SandboxConfig: conf,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "main"}, Image: &cri.ImageSpec{Image: image}, Command: command,
			Linux: &cri.LinuxContainerConfig{},
		},
	})
	if err != nil {
		return p, err
	}
	_, err = c.StartContainer(c.ctx, &cri.StartContainerRequest{ContainerId: ctr.ContainerId})
	return p, err
}

func (c client) down(id string) Pod {
	p, start := Pod{Name: id, ID: id}, time.Now()
	_, err := c.StopPodSandbox(c.ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
	if err == nil {
		_, err = c.RemovePodSandbox(c.ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
	}
	if p.Took = float64(time.Since(start).Microseconds()) / 1000; err != nil {
		p.Error = err.Error()
	}
	return p
}

func (c client) list() ([]Pod, error) {
	all, err := c.ListPodSandbox(c.ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	pods := []Pod{}
	for _, s := range all.Items {
		pods = append(pods, Pod{Name: s.Metadata.Name, ID: s.Id, Ready: s.State == cri.PodSandboxState_SANDBOX_READY})
	}
	return pods, nil
}

// status fails unless runtime and network are ready.
func (c client) status() error {
	st, err := c.Status(c.ctx, &cri.StatusRequest{})
	if err != nil {
		return err
	}
	for _, cond := range st.Status.Conditions {
		if !cond.Status && (cond.Type == cri.RuntimeReady || cond.Type == cri.NetworkReady) { // others are advice
			return fmt.Errorf("%s: %s %s", cond.Type, cond.Reason, cond.Message)
		}
	}
	return nil
}
