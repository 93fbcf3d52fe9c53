package router

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"weft/router/host"
)

// Attach connects a namespace; again for the same one changes nothing, and a failure half way leaves nothing behind.
func (r *Router) Attach(ctx context.Context, req AttachRequest) (Attachment, error) {
	if req.IfName == "" {
		req.IfName = defaultIfName
	}
	if req.Name == "" {
		return Attachment{}, errors.New("attach: the container has no name")
	}
	if !req.V4.IsValid() && !req.V6.IsValid() {
		return Attachment{}, fmt.Errorf("attach %s: it has no address", req.Name)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.has {
		return Attachment{}, fmt.Errorf("attach %s: %w", req.Name, ErrNotReady)
	}
	for _, a := range []netip.Addr{req.V4, req.V6} {
		if a.IsValid() && !holds(r.in.Pools, a) {
			return Attachment{}, fmt.Errorf("attach %s: %s is in none of the cluster's pools", req.Name, a)
		}
	}
	pod := req.Pod
	noV6 := r.cfg.Host.IPv6()
	if noV6 != nil {
		if pod.V6 = (netip.Addr{}); !pod.V4.IsValid() {
			return Attachment{}, fmt.Errorf("attach %s: it has only an IPv6 address, and %w", req.Name, noV6)
		}
	}
	_, before := r.attached[pod.id()]
	r.attached[pod.id()] = pod
	v := host.Veth{
		ID: pod.id(), NetNS: req.NetNS, IfName: pod.IfName, V4: pod.V4, V6: pod.V6, MTU: PodMTU(r.in.UnderlayMTU),
		Routes: r.in.Pools,
	}
	for _, a := range r.in.Hosts {
		if a.Is4() {
			v.Source4 = a
		} else {
			v.Source6 = a
		}
	}
	if err := r.attach(ctx, v, noV6 == nil); err != nil {
		if !before {
			delete(r.attached, pod.id())
			// The guard forgets the pod too; if not now, then with the next apply.
			if _, ferr := r.cfg.Host.Filter(ctx, guard(r.in, r.podsLocked())); ferr != nil {
				r.wake()
			}
		}
		return Attachment{}, fmt.Errorf("attach %s: %w", req.Name, err)
	}
	out := Attachment{HostIf: host.VethName(pod.id()), IfName: pod.IfName, V4: pod.V4, V6: pod.V6, MTU: v.MTU}
	if pod.V4.IsValid() {
		out.Gateway4 = host.Gateway4
	}
	if pod.V6.IsValid() {
		out.Gateway6 = host.Gateway6
	}
	return out, nil
}

// attach comes after everything that can fail without a change: the guard learns the pod, then the pair is made.
func (r *Router) attach(ctx context.Context, v host.Veth, v6 bool) error {
	// The pod's route names the host's address as its source, so that must be there.
	if p := makePlan(r.in, r.podsLocked(), nil, nil, nil, nil, v6); !r.ready || !slices.Equal(p.addresses, r.grounded) {
		if err := r.protect(ctx, p); err != nil {
			return err
		}
	} else if _, err := r.cfg.Host.Filter(ctx, guard(r.in, r.podsLocked())); err != nil {
		return err
	}
	return r.cfg.Host.Plug(ctx, v)
}

// Detach removes the connection of a pod; that nothing is left of it is no error.
func (r *Router) Detach(ctx context.Context, name, ifName string) error {
	pod := Pod{Name: name, IfName: ifName}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.cfg.Host.Unplug(ctx, pod.id()); err != nil {
		return fmt.Errorf("detach %s: %w", name, err)
	}
	delete(r.attached, pod.id())
	r.in.Pods = slices.DeleteFunc(slices.Clone(r.in.Pods), func(p Pod) bool { return p.id() == pod.id() })
	if !r.has {
		return nil
	}
	if _, err := r.cfg.Host.Filter(ctx, guard(r.in, r.podsLocked())); err != nil {
		r.wake() // the veth is gone, so the entry admits nobody
	}
	return nil
}
