package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"runtime/debug"
	"time"
)

// Deadlines of requests. Changes may have to ask the cluster.
const (
	readTimeout   = 15 * time.Second
	changeTimeout = 2 * time.Minute
	writeTimeout  = 10 * time.Second // of one answer, or one line of a stream
	maxStream     = 24 * time.Hour
)

// contentType of every body.
const contentType = "application/json"

// Handler serves b under /v1/. It allows nothing to a connection that Server did not accept, because only Server knows
// who is calling.
func Handler(b Backend) http.Handler {
	return newHandler(b, DefaultGroup, slog.New(slog.DiscardHandler))
}

type handler struct {
	backend Backend
	group   string
	log     *slog.Logger
	quota   quota // of requests at work
}

// route is one line of the API.
type route struct {
	pattern string
	need    access
	timeout time.Duration
	serve   serveFunc
}

const patternCollect = "POST /v1/attachments/collect"

// most is how large a request may be.
func (rt route) most() int64 {
	if rt.pattern == patternCollect {
		return maxCollect
	}
	return maxBody
}

// serveFunc answers, or returns the error that its caller then answers with.
type serveFunc func(ctx context.Context, w http.ResponseWriter, r *http.Request) error

func newHandler(b Backend, group string, log *slog.Logger) http.Handler {
	h := &handler{backend: b, group: group, log: log, quota: newQuota(maxRequests)}
	mux := http.NewServeMux()
	for _, r := range []route{
		{"GET /v1/status", accessRead, readTimeout, reads(b.Status)},
		{"POST /v1/init", accessChange, changeTimeout, changes(b.Init)},
		{"POST /v1/join", accessChange, changeTimeout, changes(b.Join)},
		{"POST /v1/leave", accessChange, changeTimeout, changes(b.Leave)},
		{"POST /v1/down", accessChange, changeTimeout, acts(func(ctx context.Context, _ *http.Request) error {
			return b.Down(ctx)
		})},
		{"GET /v1/tokens", accessRead, readTimeout, reads(b.TokenList)},
		{"POST /v1/tokens", accessChange, changeTimeout, changes(b.TokenCreate)},
		{"DELETE /v1/tokens/{name}", accessChange, changeTimeout, named(b.TokenRevoke)},
		{"POST /v1/attach", accessChange, changeTimeout, changes(b.Attach)},
		{"POST /v1/detach", accessChange, changeTimeout, changes(b.Detach)},
		{"POST /v1/attachments/check", accessRead, readTimeout, changes(b.Check)},
		{"POST /v1/attachments/lend", accessChange, changeTimeout, changes(b.Lend)},
		{patternCollect, accessChange, changeTimeout, changes(b.Collect)},
		{"GET /v1/ready", accessRead, readTimeout, reads(b.Ready)},
		{"GET /v1/peers", accessRead, readTimeout, reads(b.PeerList)},
		{
			"GET /v1/peers/{name}", accessRead, readTimeout,
			func(ctx context.Context, w http.ResponseWriter, r *http.Request) error {
				v, err := b.PeerShow(ctx, r.PathValue("name"))
				return answer(w, v, err)
			},
		},
		{"POST /v1/peers/remove", accessChange, changeTimeout, changes(b.PeerRemove)},
		{"GET /v1/issuers", accessRead, readTimeout, reads(b.IssuerList)},
		{"PUT /v1/issuers/{name}", accessChange, changeTimeout, named(b.IssuerAdd)},
		{"DELETE /v1/issuers/{name}", accessChange, changeTimeout, named(b.IssuerRemove)},
		{"GET /v1/ip/claims", accessRead, readTimeout, reads(b.IPList)},
		{"GET /v1/ip/ring", accessRead, readTimeout, reads(b.IPRing)},
		{"GET /v1/clients", accessRead, readTimeout, reads(b.ClientList)},
		{"POST /v1/clients", accessChange, changeTimeout, changes(b.ClientAdd)},
		{"DELETE /v1/clients/{name}", accessChange, changeTimeout, named(b.ClientRemove)},
		{"POST /v1/ip/claim", accessChange, changeTimeout, changes(b.IPClaim)},
		{"POST /v1/ip/release", accessChange, changeTimeout, changes(b.IPRelease)},
		{"POST /v1/ping", accessRead, maxStream, h.ping},
		{"POST /v1/doctor", accessRead, changeTimeout, changes(b.Doctor)},
		{"GET /v1/graph", accessRead, readTimeout, reads(b.Graph)},
		{"GET /v1/report", accessRead, changeTimeout, h.report},
	} {
		mux.Handle(r.pattern, h.route(r))
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, &Error{
			Code:    Unsupported,
			Message: "the daemon does not know this command",
			Cause:   r.Method + " " + r.URL.Path,
			Hint:    "It is older than this weft. Restart it: the command line and the daemon are one program",
		})
	})
	return mux
}

// route wraps what every request needs: permission, a slot, a deadline, and a fence around panics.
func (h *handler) route(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := allow(r.Context(), rt.need, h.group); err != nil {
			refuse(w, err)
			return
		}
		release, ok := h.quota.take(accessOf(r.Context()))
		if !ok {
			refuse(w, &Error{
				Code: Busy, Message: "the daemon is busy", Cause: fmt.Sprintf("%d requests at work", maxRequests),
				Hint: "Try again in a moment",
			})
			return
		}
		defer release()
		ctx, cancel := context.WithTimeout(r.Context(), rt.timeout)
		defer cancel()
		defer func() {
			if p := recover(); p != nil {
				h.log.Error("request panicked", "route", rt.pattern, "panic", p, "stack", string(debug.Stack()))
				refuse(w, &Error{
					Code: Failed, Message: "the daemon made a mistake over this request",
					Hint: "Its log says where. Please report it with the output of: weft report",
				})
			}
		}()
		r.Body = http.MaxBytesReader(w, r.Body, rt.most())
		writeBy(http.NewResponseController(w), rt.timeout+writeTimeout)
		if err := rt.serve(ctx, w, r); err != nil {
			h.log.Debug("request refused", "route", rt.pattern, "err", err)
			refuse(w, err)
		}
	})
}

// writeBy bounds how long a caller may take to read. Its error is that of a connection which is closed already, and
// the write that follows finds that out too.
func writeBy(rc *http.ResponseController, d time.Duration) {
	_ = rc.SetWriteDeadline(time.Now().Add(d))
}

func reads[Reply any](f func(context.Context) (Reply, error)) serveFunc {
	return func(ctx context.Context, w http.ResponseWriter, _ *http.Request) error {
		v, err := f(ctx)
		return answer(w, v, err)
	}
}

func changes[Request, Reply any](f func(context.Context, Request) (Reply, error)) serveFunc {
	return func(ctx context.Context, w http.ResponseWriter, r *http.Request) error {
		var q Request
		if err := decodeRequest(r.Body, &q); err != nil {
			return err
		}
		v, err := f(ctx, q)
		return answer(w, v, err)
	}
}

func acts(f func(context.Context, *http.Request) error) serveFunc {
	return func(ctx context.Context, w http.ResponseWriter, r *http.Request) error {
		return answer(w, struct{}{}, f(ctx, r))
	}
}

func named(f func(context.Context, string) error) serveFunc {
	return acts(func(ctx context.Context, r *http.Request) error { return f(ctx, r.PathValue("name")) })
}

// ping streams one JSON document per line; an error after the first line is a line of its own.
func (h *handler) ping(ctx context.Context, w http.ResponseWriter, r *http.Request) error {
	var q PingRequest
	if err := decodeRequest(r.Body, &q); err != nil {
		return err
	}
	if q.Count < 0 || q.Interval < 0 || q.Timeout < 0 {
		return &Error{Code: Usage, Message: "count, interval and timeout cannot be negative"}
	}
	rc := http.NewResponseController(w)
	lines := 0
	err := h.backend.Ping(ctx, q, func(p PingReply) error {
		if lines++; lines == 1 {
			w.Header().Set("Content-Type", "application/x-ndjson")
		}
		writeBy(rc, writeTimeout)
		if err := json.NewEncoder(w).Encode(pingLine{PingReply: &p}); err != nil {
			return err
		}
		return rc.Flush()
	})
	if err == nil || lines == 0 {
		return err
	}
	// The headers are gone: say it in the stream. Whoever hung up does not hear it, and need not.
	_ = json.NewEncoder(w).Encode(pingLine{Error: Explain(err)})
	return nil
}

// pingLine is one line of a stream of replies.
type pingLine struct {
	*PingReply
	Error *Error `json:"error,omitempty"`
}

// report blots out tokens: the sections come from many places, and one of them may quote what somebody typed.
func (h *handler) report(ctx context.Context, w http.ResponseWriter, _ *http.Request) error {
	v, err := h.backend.Report(ctx)
	if err != nil {
		return err
	}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode report: %w", err)
	}
	token := regexp.MustCompile(`weft1[a-z2-7]{8,}`)
	return answer(w, json.RawMessage(token.ReplaceAll(b, []byte("weft1(blotted out)"))), nil)
}

func answer(w http.ResponseWriter, v any, err error) error {
	if err != nil {
		return err
	}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	w.Header().Set("Content-Type", contentType)
	// An error here is a caller who hung up; there is nobody left to tell.
	_, _ = w.Write(append(b, '\n'))
	return nil
}

// problem is the body of a refusal.
type problem struct {
	Version int    `json:"version"`
	Error   *Error `json:"error"`
}

func refuse(w http.ResponseWriter, err error) {
	e := Explain(err)
	b, err := json.Marshal(problem{Version: Version, Error: e})
	if err != nil { // an Error holds strings only
		b = []byte(`{}`)
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(httpStatus(e.Code))
	_, _ = w.Write(append(b, '\n'))
}

func httpStatus(c Code) int {
	switch c {
	case Usage:
		return http.StatusBadRequest
	case Denied:
		return http.StatusForbidden
	case NotFound:
		return http.StatusNotFound
	case Conflict:
		return http.StatusConflict
	case NotReady, NoQuorum:
		return http.StatusServiceUnavailable
	case Unsupported:
		return http.StatusNotImplemented
	case Busy:
		return http.StatusTooManyRequests
	case Timeout:
		return http.StatusGatewayTimeout
	}
	return http.StatusInternalServerError
}

// decodeRequest refuses what it does not understand to the last field. Nothing of the body is quoted in the error,
// which might be logged, but the name of a field.
func decodeRequest(r io.Reader, v any) error {
	b, err := io.ReadAll(r)
	if err != nil {
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			return &Error{Code: Usage, Message: fmt.Sprintf("the request is larger than %d bytes", tooLarge.Limit)}
		}
		return &Error{Code: Usage, Message: "the request did not arrive whole", Cause: cause(err)}
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	e := &Error{Code: Usage, Message: "the daemon does not understand this request"}
	if err = d.Decode(v); err == nil {
		if _, err = d.Token(); errors.Is(err, io.EOF) {
			return nil
		}
		e.Cause = "more than one JSON document"
		return e
	}
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch field := unknownField(err); {
	case field != "":
		e.Cause, e.Hint = "unknown field "+field, "The daemon may be older than this weft. Restart it"
	case errors.As(err, &syntax):
		e.Cause = fmt.Sprintf("no JSON at byte %d", syntax.Offset)
	case errors.As(err, &kind) && kind.Field != "":
		e.Cause = fmt.Sprintf("field %s wants %s", kind.Field, kind.Type)
	default:
		e.Cause = "not JSON of the right shape"
	}
	return e
}

// unknownField takes the name out of encoding/json's only error that has no type.
func unknownField(err error) string {
	const prefix = "json: unknown field "
	if s := err.Error(); len(s) > len(prefix) && len(s) < len(prefix)+64 && s[:len(prefix)] == prefix {
		return s[len(prefix):]
	}
	return ""
}
