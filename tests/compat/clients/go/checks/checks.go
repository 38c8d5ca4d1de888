// Package checks is what the clients in Go share: one line for each check, "ok" or what was found instead.
package checks

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"reflect"
	"strings"
)

const Group = "a/b c"

// What the program is called with.
var URL, Password, Token = os.Args[1], os.Args[2], os.Args[3]

func Check(name string, body func() error) {
	result := "ok"
	if err := body(); err != nil {
		result = strings.Join(strings.Fields(err.Error()), " ")
	}
	fmt.Println(name, result)
}

func Equal(found, expected any) error {
	if reflect.DeepEqual(found, expected) {
		return nil
	}
	return fmt.Errorf("expected %v, found %v", expected, found)
}

func First(errors ...error) error {
	for _, err := range errors {
		if err != nil {
			return err
		}
	}
	return nil
}

func Basic(password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte("openim:"+password))
}

// Authorized sends a header with every request of a client that has no way of its own.
type Authorized string

func (authorization Authorized) RoundTrip(request *http.Request) (*http.Response, error) {
	request = request.Clone(request.Context())
	request.Header.Set("Authorization", string(authorization))
	return http.DefaultTransport.RoundTrip(request)
}
