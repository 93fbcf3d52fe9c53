package control

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
)

// FuzzRequest feeds each request arbitrary bytes: the server refuses them in words, or has understood all of them.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		``, `{}`, `null`, `{"netns":"/run/netns/web","ip":"10.32.0.7","mtu":1}`, `{"ttl":"24h","uses":2}`,
		`{"token":"weft1abc","advertise":["192.0.2.1"]}`, `{"pools":["10.32.0.0/12"],"pool6":"none"}`, `{"peer":"b","interval":"1s"}`,
		`{"purge":true}`, `{"purge":true,"x":1}`, `{"pools":null}`, `[{}]`, `{"ip":""}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, v := range []any{
			new(InitRequest), new(JoinRequest), new(LeaveRequest), new(TokenRequest), new(AttachRequest),
			new(DetachRequest), new(PingRequest), new(DoctorRequest),
		} {
			if err := decodeRequest(bytes.NewReader(b), v); err != nil {
				if e := Explain(err); e.Code != Usage || e.Message == "" || e.Cause == "" {
					t.Fatalf("refused with %+v", e)
				}
				continue
			}
			first, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			again := reflect.New(reflect.TypeOf(v).Elem()).Interface()
			if err := decodeRequest(bytes.NewReader(first), again); err != nil {
				t.Fatalf("a client's copy is refused: %v\n%s", err, first)
			}
		}
	})
}
