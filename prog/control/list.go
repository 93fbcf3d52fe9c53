package control

import "encoding/json"

// List is a slice that encodes as [] when it is nil, so that scripts never meet a null.
type List[T any] []T

// MarshalJSON writes an array, always.
func (l List[T]) MarshalJSON() ([]byte, error) {
	if l == nil {
		return []byte("[]"), nil
	}
	return json.Marshal([]T(l))
}
