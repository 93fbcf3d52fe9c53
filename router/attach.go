package router

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"weft/router/host"
)

// Attach connects a namespace; again for the same one changes nothing but the addresses, which are exchanged when they
// differ, and a failure half way leaves nothing behind. Pods are attached side by side; what concerns the whole machine
// they share (turns).
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
	noV6 := r.ipv6()
	if noV6 != nil {
		if req.V6 = (netip.Addr{}); !req.V4.IsValid() {
			return Attachment{}, fmt.Errorf("attach %s: it has only an IPv6 address, and %w", req.Name, noV6)
		}
	}
	release, err := r.hold(ctx, req.id())
	if err != nil {
		return Attachment{}, fmt.Errorf("attach %s: %w", req.Name, err)
	}
	defer release()
	if err := r.buried(ctx, host.VethName(req.id())); err != nil {
		return Attachment{}, fmt.Errorf("attach %s: %w", req.Name, err)
	}
	v, number, undo, err := r.register(req)
	if err != nil {
		return Attachment{}, fmt.Errorf("attach %s: %w", req.Name, err)
	}
	if err := r.attach(ctx, v, number); err != nil {
		if undo() {
			// The guard forgets the pod too; if not now, then with the next apply.
			if err := r.admit(context.WithoutCancel(ctx)); err != nil {
				r.wake()
			}
		}
		return Attachment{}, fmt.Errorf("attach %s: %w", req.Name, err)
	}
	out := Attachment{HostIf: host.VethName(v.ID), IfName: req.IfName, V4: req.V4, V6: req.V6, MTU: v.MTU}
	out.HostMAC, out.MAC = v.MACs()
	if req.V4.IsValid() {
		out.Gateway4 = host.Gateway4
	}
	if req.V6.IsValid() {
		out.Gateway6 = host.Gateway6
	}
	return out, nil
}

// register makes the pod one of those that the guard and the routes are for, under its new addresses only; number counts
// such changes. undo takes it back and reports whether it did: a pod that was attached before stays so.
func (r *Router) register(req AttachRequest) (v host.Veth, number uint64, undo func() bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.has {
		return v, 0, nil, ErrNotReady
	}
	for _, a := range []netip.Addr{req.V4, req.V6} {
		if a.IsValid() && !holds(r.in.Pools, a) {
			return v, 0, nil, fmt.Errorf("%s is in none of the cluster's pools", a)
		}
	}
	id := req.id()
	_, before := r.attached[id]
	r.attached[id] = req.Pod
	if i := slices.IndexFunc(r.in.Pods, func(p Pod) bool { return p.id() == id }); i >= 0 && r.in.Pods[i] != req.Pod {
		r.in.Pods = slices.Clone(r.in.Pods)
		r.in.Pods[i] = req.Pod
	}
	v = host.Veth{
		ID: id, NetNS: req.NetNS, IfName: req.IfName, V4: req.V4, V6: req.V6, MTU: PodMTU(r.in.UnderlayMTU), Routes: r.in.Pools,
		MAC: req.MAC, Siblings: len(r.in.Siblings[req.V4]) > 0,
	}
	if req.MTU > 0 {
		v.MTU = min(v.MTU, req.MTU)
	}
	for _, a := range r.in.Hosts {
		if a.Is4() {
			v.Source4 = a
		} else {
			v.Source6 = a
		}
	}
	r.registered++
	return v, r.registered, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		if !before {
			delete(r.attached, id)
		}
		return !before
	}, nil
}

// attach comes after everything that can fail without a change: the guard learns the pod, then the pair is made. One pod at a
// time, because the kernel makes nearly all changes of the network one after the other, and who waits for it in a system call
// keeps others of this process from a processor meanwhile. Whoever's turn it is makes the guard learn of all that wait, so
// that most find theirs known.
func (r *Router) attach(ctx context.Context, v host.Veth, number uint64) error {
	select {
	case r.plugging <- struct{}{}:
		defer func() { <-r.plugging }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if !r.isAdmitted(number) {
		if err := r.admit(ctx); err != nil {
			return err
		}
	}
	err := r.cfg.Host.Plug(ctx, v)
	if taken := new(host.IfNameError); errors.As(err, &taken) && r.buried(ctx) == nil {
		// The interface in the way may have been that of a pod that was detached under another name.
		err = r.cfg.Host.Plug(ctx, v)
	}
	return err
}

// admit brings the guard up to date with the pods. Whoever calls it meanwhile shares the next change.
func (r *Router) admit(ctx context.Context) error {
	return r.turns.share(ctx, func(ctx context.Context) error {
		r.machine.Lock()
		defer r.machine.Unlock()
		r.mu.Lock()
		in, has, ready, pods, v6, number := r.in, r.has, r.ready, r.podsLocked(), r.ipv6Locked() == nil, r.registered
		r.mu.Unlock()
		if !has {
			return ErrNotReady
		}
		// The pods' routes name the host's address as their source, so that must be there.
		var err error
		if addresses, _, _ := hostAddresses(in, v6); !ready || !slices.Equal(addresses, r.grounded) {
			err = r.protect(ctx, makePlan(in, pods, nil, nil, nil, nil, v6))
		} else {
			_, err = r.cfg.Host.Filter(ctx, guard(in, pods))
		}
		if err == nil {
			r.mu.Lock()
			r.admitted = max(r.admitted, number)
			r.mu.Unlock()
		}
		return err
	})
}

// isAdmitted reports whether the guard knows what was registered under a number. It does not forget: what is registered is
// in every later guard.
func (r *Router) isAdmitted(number uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.admitted >= number
}

// Detach ends the connection of a pod; that nothing is left of it is no error. When it returns nobody reaches the pod any
// more and it can send nothing: the guard has forgotten it and its routes are gone. The link follows in the background,
// because to delete one takes the kernel 16 to 350 ms; see Lingers.
func (r *Router) Detach(ctx context.Context, name, ifName string) error {
	id := Pod{Name: name, IfName: ifName}.id()
	release, err := r.hold(ctx, id)
	if err != nil {
		return fmt.Errorf("detach %s: %w", name, err)
	}
	defer release()
	link := host.VethName(id)
	switch pod, known := r.forget(id); {
	case known:
		if err = r.admit(ctx); err == nil {
			err = r.cfg.Host.Cut(ctx, id, pod.V4, pod.V6)
		}
		if err == nil {
			r.bury(link)
			return nil
		}
		r.log.Warn("pod not cut off, deleting its link at once", "container", name, "err", err)
	case r.lingers(link):
		return nil
	}
	// Its addresses are not known, or it could not be cut off.
	if err := r.cfg.Host.Unplug(ctx, link); err != nil {
		r.bury(link)
		return fmt.Errorf("detach %s: %w", name, err)
	}
	r.close(link)
	r.wake()
	return nil
}

// forget takes a pod out of what the guard and the routes are for, whatever the input says from now on. known is whether
// that can be done by its addresses.
func (r *Router) forget(id string) (pod Pod, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if pod, known = r.attached[id]; known {
		delete(r.attached, id)
	}
	if i := slices.IndexFunc(r.in.Pods, func(p Pod) bool { return p.id() == id }); i >= 0 {
		pod, known = r.in.Pods[i], true
		r.in.Pods = slices.Delete(slices.Clone(r.in.Pods), i, i+1)
	}
	known = known && r.has
	if known {
		r.dedicate(host.VethName(id), pod)
	}
	return pod, known
}

// ipv6 is whether this machine speaks IPv6, as it was when all was looked at last.
func (r *Router) ipv6() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ipv6Locked()
}

func (r *Router) ipv6Locked() error {
	if !r.asked {
		r.noV6, r.asked = r.cfg.Host.IPv6(), true
	}
	return r.noV6
}

// hold waits until nobody else is at work on the connection of a pod.
func (r *Router) hold(ctx context.Context, id string) (release func(), err error) {
	for {
		r.mu.Lock()
		other, busy := r.busy[id]
		if !busy {
			done := make(chan struct{})
			r.busy[id] = done
			r.mu.Unlock()
			return func() {
				r.mu.Lock()
				delete(r.busy, id)
				r.mu.Unlock()
				close(done)
			}, nil
		}
		r.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
