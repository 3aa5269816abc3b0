module github.com/vallum/vallum/conformance

go 1.26.0

replace github.com/vallum/vallum => ../

require (
	github.com/anthropics/anthropic-sdk-go v1.84.0
	github.com/openai/openai-go/v3 v3.96.0
	github.com/vallum/vallum v0.0.0
)

require github.com/go-json-experiment/json v1.27.2 // indirect
