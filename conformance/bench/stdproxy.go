package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
)

// serveStdlib is what an afternoon with the standard library gives: a proxy that looks at nothing but whether there is
// a key at all and how long the body is.
func serveStdlib(upstream string) error {
	to, err := url.Parse(upstream)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("%shttp://%s\n", readyPrefix, l.Addr())
	go endWithParent()
	proxy := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(to) },
		Transport: &http.Transport{MaxIdleConnsPerHost: 1024, DisableCompression: true},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
				w.WriteHeader(http.StatusRequestEntityTooLarge)
				return
			}
			w.WriteHeader(http.StatusBadGateway)
		},
	}
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch {
		case r.Header.Get("Authorization") == "":
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, refusal)
		case r.ContentLength > maxBody:
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			fmt.Fprint(w, refusal)
		default:
			w.Header().Del("Content-Type")
			r.Body = http.MaxBytesReader(w, r.Body, maxBody)
			proxy.ServeHTTP(w, r)
		}
	}))
}
