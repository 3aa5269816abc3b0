// Package upload knows the parts of a multipart form: what their headers say, and where a file lies until it is sent.
// It refuses headers that Go and Starlette (python-multipart) read differently.
package upload

import (
	"fmt"
	"mime"
	"net/textproto"
	"strings"
)

const maxHeaders = 8 // fields of one part

// Head reads a part's headers: its field, and whether it is a file. fault is in our words, for the caller.
func Head(header textproto.MIMEHeader) (name, filename string, isFile bool, fault string) {
	if len(header) > maxHeaders {
		return "", "", false, fmt.Sprintf("a part may have %d headers at most", maxHeaders)
	}
	for key, values := range header {
		if len(values) > 1 || key == "Content-Transfer-Encoding" {
			return "", "", false, "a part must have each header once, and no transfer encoding"
		}
	}
	if value := header.Get("Content-Type"); value != "" {
		media, params, err := mime.ParseMediaType(value)
		charset := strings.ToLower(params["charset"])
		if err != nil || strings.HasPrefix(media, "multipart/") || charset != "" && charset != "utf-8" && charset != "us-ascii" {
			return "", "", false, "a part's Content-Type must be a media type in UTF-8, and no form itself"
		}
	}
	disposition := header.Get("Content-Disposition")
	kind, params, err := mime.ParseMediaType(disposition) // it refuses repeated parameters
	// It also folds name*=utf-8''x and name*0=x into name (RFC 2231), which Starlette does not: RFC 7578 §4.2 forbids them.
	bare := strings.NewReplacer(" ", "", "\t", "").Replace(strings.ToLower(disposition))
	if err != nil || kind != "form-data" || params["name"] == "" || strings.Contains(bare, ";name*") {
		return "", "", false, `a part needs Content-Disposition: form-data; name="…", each parameter once`
	}
	filename, isFile = params["filename"]
	return params["name"], filename, isFile, ""
}
