package mesh

import (
	"bytes"
	"context"
	"log"
	"log/slog"
)

// gossipLogger makes memberlist's lines debug records of ours. Its levels are of no use to an operator: a peer that is
// switched off is an error to it, every second.
func gossipLogger(l *slog.Logger) *log.Logger {
	return log.New(&logWriter{l}, "", 0)
}

type logWriter struct{ log *slog.Logger }

func (w *logWriter) Write(line []byte) (int, error) {
	if !w.log.Enabled(context.Background(), slog.LevelDebug) {
		return len(line), nil
	}
	text := bytes.TrimSpace(line)
	level := "info"
	if end := bytes.IndexByte(text, ']'); bytes.HasPrefix(text, []byte("[")) && end > 0 {
		level = string(bytes.ToLower(text[1:end]))
		text = bytes.TrimSpace(text[end+1:])
	}
	text = bytes.TrimPrefix(text, []byte("memberlist: "))
	w.log.Debug("gossip", "level", level, "text", string(text))
	return len(line), nil
}
