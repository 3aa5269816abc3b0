// Package vallum guards vLLM deployments; the program is cmd/vallum. It holds no code of its own, so that nothing
// can import around the gateway.
//
// To understand it, read five files in this order:
//
//  1. internal/verdict/reasons.go    what is refused, and in which words
//  2. internal/gateway/exchange.go   the data path, top to bottom
//  3. internal/policy/policy.go      who may do what
//  4. internal/vllm/operations.go    what vLLM serves, and how a role can be given it
//  5. internal/inspect/inspect.go    what may stand in a body
package vallum
