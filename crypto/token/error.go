package token

// Codes of errors, for programs.
const (
	CodeNotToken  = "not-a-token"
	CodeTruncated = "token-truncated"
	CodeNewer     = "token-newer"
)

// Error says to a person what is wrong with a token. It never holds the token.
type Error struct {
	Code     string
	Sentence string
	Cause    string
	Hint     string
}

// Error is the sentence with its cause.
func (e *Error) Error() string { return e.Sentence + " (" + e.Cause + ")" }

func notToken(cause string) error {
	return &Error{
		Code:     CodeNotToken,
		Sentence: "this is not a join token",
		Cause:    cause,
		Hint:     "Make one on a member with: weft token create",
	}
}

func damaged(cause string) error {
	return &Error{
		Code:     CodeTruncated,
		Sentence: "the token is cut off or mistyped",
		Cause:    cause,
		Hint:     "Copy it again, whole: weft1 and all letters and digits that follow.",
	}
}

func ofNewer() error {
	return &Error{
		Code:     CodeNewer,
		Sentence: "the token was made by a newer weft than this one",
		Cause:    "its format is not known here",
		Hint:     "Upgrade weft on this machine, then join again.",
	}
}
