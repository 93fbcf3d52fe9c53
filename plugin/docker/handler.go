package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"
)

const (
	maxBody     = 1 << 20          // bytes of a call
	callTime    = 10 * time.Second // for a handler to find its answer or the sentence why there is none
	answerTime  = 12 * time.Second // after which dockerd gets an answer, whatever the handler does
	contentType = "application/vnd.docker.plugins.v1.1+json"
)

// call answers one method of the protocol.
type call func(ctx context.Context, body []byte) (any, error)

// method makes a call of a function with its own request.
func method[R any](f func(context.Context, R) (any, error)) call {
	return func(ctx context.Context, body []byte) (any, error) {
		var r R
		if len(body) > 0 {
			if err := json.Unmarshal(body, &r); err != nil {
				return nil, fmt.Errorf("the call makes no sense: %w", err)
			}
		}
		return f(ctx, r)
	}
}

// fixed is the same answer for everybody.
func fixed(answer any) call {
	return func(context.Context, []byte) (any, error) { return answer, nil }
}

// calls lists what dockerd may ask.
func (p *Plugin) calls() map[string]call {
	nothing := fixed(struct{}{})
	return map[string]call{
		"Plugin.Activate": fixed(implements{[]string{"NetworkDriver", "IpamDriver"}}),

		"IpamDriver.GetCapabilities":         fixed(ipamCapabilities{RequiresMACAddress: true}),
		"IpamDriver.GetDefaultAddressSpaces": fixed(addressSpaces{addressSpace, addressSpace}),
		"IpamDriver.RequestPool":             method(p.requestPool),
		"IpamDriver.ReleasePool":             nothing,
		"IpamDriver.RequestAddress":          method(p.requestAddress),
		"IpamDriver.ReleaseAddress":          method(p.releaseAddress),

		"NetworkDriver.GetCapabilities":             fixed(networkCapabilities{"local", "global"}),
		"NetworkDriver.CreateNetwork":               method(p.createNetwork),
		"NetworkDriver.DeleteNetwork":               method(p.deleteNetwork),
		"NetworkDriver.AllocateNetwork":             nothing,
		"NetworkDriver.FreeNetwork":                 nothing,
		"NetworkDriver.CreateEndpoint":              method(p.createEndpoint),
		"NetworkDriver.EndpointOperInfo":            nothing,
		"NetworkDriver.DeleteEndpoint":              method(p.deleteEndpoint),
		"NetworkDriver.Join":                        method(p.join),
		"NetworkDriver.Leave":                       method(p.leave),
		"NetworkDriver.DiscoverNew":                 nothing,
		"NetworkDriver.DiscoverDelete":              nothing,
		"NetworkDriver.ProgramExternalConnectivity": method(p.publish),
		"NetworkDriver.RevokeExternalConnectivity":  method(p.unpublish),
	}
}

// Handler answers dockerd. Every call is answered within 12 s: a request that is still at work then is left to end by
// itself, and dockerd is told so.
func (p *Plugin) Handler() http.Handler {
	calls := p.calls()
	inner := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := r.URL.Path
		if len(name) > 0 {
			name = name[1:]
		}
		c, ok := calls[name]
		if !ok || r.Method != http.MethodPost {
			reply(w, http.StatusNotFound, failed(fmt.Sprintf("weft has no call %.100q", name)))
			return
		}
		answer, err := p.answer(r, name, c)
		if err != nil {
			// dockerd puts the words before a person only where the status is good.
			p.log.Warn("docker refused", "call", name, "err", err)
			answer = failed(err.Error())
		}
		reply(w, http.StatusOK, answer)
	})
	late, _ := json.Marshal(failed("weft did not answer in time. Try: weft status"))
	timely := http.TimeoutHandler(inner, answerTime, string(late))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentType)
		timely.ServeHTTP(w, r)
	})
}

func (p *Plugin) answer(r *http.Request, name string, c call) (answer any, err error) {
	defer func() {
		if v := recover(); v != nil {
			p.log.Error("task panicked", "call", name, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			answer, err = nil, errors.New("weft made a mistake; its log says more")
		}
	}()
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the call: %w", err)
	case len(body) > maxBody:
		return nil, fmt.Errorf("a call has at most %d bytes", maxBody)
	}
	ctx, cancel := context.WithTimeout(r.Context(), callTime)
	defer cancel()
	p.log.Log(ctx, slog.LevelDebug, "docker asks", "call", name)
	return c(ctx, body)
}

func reply(w http.ResponseWriter, status int, answer any) {
	b, err := json.Marshal(answer)
	if err != nil {
		status, b = http.StatusInternalServerError, []byte(`{"Err":"weft cannot encode its answer","Error":"weft cannot encode its answer"}`)
	}
	w.WriteHeader(status)
	_, _ = w.Write(b) // whoever hung up needs no answer
}
