// Package conformance proves the product's security properties against the
// real parts: a real vLLM, the official clients, real proxies. It refuses to
// count a property that was not first seen to be missing from vLLM alone.
//
// Its tests carry the build tag conformance and need `run ./install` first:
//
//	go -C conformance run ./install
//	go -C conformance test -tags conformance -timeout 60m ./...
//	go -C conformance test -tags conformance -run 'TestA/tokenizer_info' .
//
// Every suite runs against one vLLM configuration, started once (package
// realvllm says which): A all dangerous routes open, with a key, on a UNIX
// socket; B by default flags; C an embedding model; D a classifier; E a
// multimodal model; F a speech model; G A's configuration in the oldest release
// that is promised; H two servers side by side. The end prints what was shown, against which real part.
package conformance
