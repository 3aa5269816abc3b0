package parts

import (
	_ "embed"
	"strings"
)

var (
	// MakeModels is the Python program that makes the tiny models.
	//go:embed recipes/make_models.py
	MakeModels []byte
	// VLLMConstraints pins all that vLLM drags in: the versions it was seen to
	// run with.
	//go:embed recipes/vllm-constraints.txt
	VLLMConstraints []byte
	// PythonClients is the requirements file of the official Python clients.
	//go:embed recipes/python-clients.txt
	PythonClients []byte
	// RecordClients is the requirements file of the further Python clients
	// whose requests the corpus records.
	//go:embed recipes/record-clients.txt
	RecordClients []byte
	// NodePackage and NodeLock are npm's two files for the Node clients.
	//go:embed recipes/node/package.json
	NodePackage []byte
	//go:embed recipes/node/package-lock.json
	NodeLock []byte
)

// DebianPackages are nginx, wrk, and the libraries of theirs that a slim system
// may lack.
var DebianPackages = []string{"nginx", "nginx-common", "wrk", "libluajit-5.1-2", "libpcre2-8-0", "libssl3"}

// The parts, each named once.
var (
	UV      = New("uv", UVVersion)
	VLLM    = New("vllm", VLLMVersion, []byte("torch "+TorchVersion+" with pip"), VLLMConstraints)
	Models  = New("models", VLLMVersion, MakeModels)
	Python  = New("python-clients", OpenAIPython, PythonClients)
	Records = New("record-clients", "1", RecordClients)
	Node    = New("node-clients", OpenAINode, NodePackage, NodeLock)
	Debian  = New("debian", "12", []byte(strings.Join(DebianPackages, " ")))
)
