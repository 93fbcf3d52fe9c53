// Package tlv is the one binary encoding of weft: a list of fields, each a tag, a length and a value.
//
//	 0      2          6            6+n
//	+------+----------+------------+------+-- ...
//	| tag  | length n | value      | tag  |
//	+------+----------+------------+------+-- ...
//	 uint16  uint32     n bytes              big endian
//
// The encoding is canonical: tags rise strictly, nothing stands between or after the fields, and a list is one value
// (AppendList). Whoever parses keeps the bytes and looks values up in them, so a field that this build does not know is
// forwarded and signed exactly as it came.
//
// Every message, record and stored value starts with a version byte (Version) and continues with fields. The package
// knows neither what fields mean nor which are required: that is with those who define a message.
package tlv
