package wire

import (
	"context"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// TestMain makes the test binary the wire, or a weftd that attaches and waits to be killed, when it is started as one.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "wire" {
		if err := Main(context.Background(), ServerOptions{Socket: os.Args[2], Version: "test"}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) == 3 && os.Args[1] == "controller" {
		c, err := Ensure(context.Background(), Options{Socket: os.Args[2]})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("attached")
		<-c.Done()
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}
