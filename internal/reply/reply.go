// Package reply is what may leave: refusals in each dialect, the model list, and vLLM's answers with what callers must
// not see taken out. It refuses to guess: an answer that it cannot read where it has to does not leave, and model text
// is never edited.
package reply
