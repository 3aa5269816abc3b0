// Command client runs a fixed list of calls with the official Go SDKs at their
// defaults. It refuses to interpret what it gets: each call is one line of JSON
// on standard output, without what differs between two runs of one server.
//
//	BASE_URL=http://… KEY=… MODEL=… go run ./clients/go openai|anthropic|embeddings
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"time"

	"github.com/anthropics/anthropic-sdk-go"
	aoption "github.com/anthropics/anthropic-sdk-go/option"
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"
)

var (
	base  = os.Getenv("BASE_URL")
	key   = os.Getenv("KEY")
	model = os.Getenv("MODEL")
)

const timeout = 60 * time.Second

func main() {
	calls := map[string]func(context.Context){"openai": openaiCalls, "anthropic": anthropicCalls, "embeddings": embeddingsCalls}
	if len(os.Args) != 2 || calls[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "client: want one of openai, anthropic, embeddings")
		os.Exit(2)
	}
	calls[os.Args[1]](context.Background())
}

var volatile = []string{
	"id", "created", "created_at", "completed_at", "system_fingerprint", "item_id", "call_id", "response_id",
	"prompt_tokens_details", "completion_tokens_details", "input_tokens_details", "output_tokens_details",
	"cache_read_input_tokens", "cache_creation_input_tokens", "root", "permission", "owned_by",
}

// run prints the outcome of one call. Results are the raw JSON that the SDK
// kept, errors the SDK's type and the status.
func run(name string, call func() (any, error)) {
	line := map[string]any{"case": name}
	v, err := call()
	var oe *openai.Error
	var ae *anthropic.Error
	switch {
	case errors.As(err, &oe):
		line["error"] = map[string]any{"class": "openai.Error", "status": oe.StatusCode}
	case errors.As(err, &ae):
		line["error"] = map[string]any{"class": "anthropic.Error", "status": ae.StatusCode}
	case err != nil:
		line["error"] = map[string]any{"class": fmt.Sprintf("%T", err), "text": err.Error()}
	default:
		line["result"] = plain(v)
	}
	b, err := json.Marshal(line)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(b))
}

// rawer is every result of both SDKs.
type rawer interface{ RawJSON() string }

func plain(v any) any {
	switch x := v.(type) {
	case rawer:
		var out any
		if json.Unmarshal([]byte(x.RawJSON()), &out) != nil {
			return x.RawJSON()
		}
		return plain(out)
	case map[string]any:
		addCached(x)
		out := map[string]any{}
		for k, v := range x {
			if v != nil && !slices.Contains(volatile, k) {
				out[k] = plain(v)
			}
		}
		return out
	case []any:
		out := make([]any, len(x))
		for i := range x {
			out[i] = plain(x[i])
		}
		return out
	case float64:
		return math.Round(x*1e4) / 1e4
	}
	return v
}

// addCached adds what vLLM counts apart on messages: a gateway may hide which
// tokens were cached.
func addCached(usage map[string]any) {
	total, isNumber := usage["input_tokens"].(float64)
	if !isNumber {
		return
	}
	for _, part := range []string{"cache_read_input_tokens", "cache_creation_input_tokens"} {
		if n, isNumber := usage[part].(float64); isNumber {
			total += n
		}
	}
	usage["input_tokens"] = total
}

// eventStream is what a user does with a stream of either SDK.
type eventStream[T rawer] interface {
	Next() bool
	Current() T
	Err() error
}

// piece is what a user sees of one event: its text, or why the answer ended.
type piece struct {
	text, end string
	usage     any
}

// drain reads a stream to its end. The number of events is left out: vLLM joins
// tokens that wait for a slow reader into one.
func drain[T rawer](s eventStream[T], read func(T) piece) (any, error) {
	var text, end string
	var usage []any
	bare := 0
	for s.Next() {
		p := read(s.Current())
		text += p.text
		switch {
		case p.end != "":
			end = p.end
		case p.text == "" && p.usage != nil:
			bare++
		}
		if p.usage != nil {
			usage = append(usage, plain(p.usage))
		}
	}
	return map[string]any{"text": text, "end": end, "bare": bare, "usage": usage}, s.Err()
}

// kinds reads a stream of typed events: their types, repetitions once.
func kinds[T rawer](s eventStream[T], kind func(T) string) (any, error) {
	var out []any
	for s.Next() {
		if k := kind(s.Current()); len(out) == 0 || out[len(out)-1] != k {
			out = append(out, k)
		}
	}
	return out, s.Err()
}

func readChat(e openai.ChatCompletionChunk) piece {
	var p piece
	if len(e.Choices) > 0 {
		p.text, p.end = e.Choices[0].Delta.Content, e.Choices[0].FinishReason
	}
	if e.JSON.Usage.Valid() {
		p.usage = e.Usage
	}
	return p
}

func readCompletion(e openai.Completion) piece {
	return piece{text: e.Choices[0].Text, end: string(e.Choices[0].FinishReason)}
}

func openaiClient(path, secret string) openai.Client {
	return openai.NewClient(option.WithBaseURL(base+path), option.WithAPIKey(secret), option.WithMaxRetries(0), option.WithRequestTimeout(timeout))
}

func chatParams() openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{
		Model: model, Temperature: openai.Float(0), MaxTokens: openai.Int(8),
		Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("hello")},
	}
}

func openaiCalls(ctx context.Context) {
	c := openaiClient("/v1", key)
	run("models.list", func() (any, error) {
		page, err := c.Models.List(ctx)
		if err != nil {
			return nil, err
		}
		var ids []any
		for _, m := range page.Data {
			ids = append(ids, m.ID)
		}
		return ids, nil
	})
	run("models.retrieve", func() (any, error) {
		m, err := c.Models.Get(ctx, model)
		if err != nil {
			return nil, err
		}
		return m.ID, nil
	})
	run("chat", func() (any, error) { return c.Chat.Completions.New(ctx, chatParams()) })
	run("chat.stream", func() (any, error) {
		return drain(c.Chat.Completions.NewStreaming(ctx, chatParams()), readChat)
	})
	run("chat.stream.usage", func() (any, error) {
		p := chatParams()
		p.StreamOptions.IncludeUsage = openai.Bool(true)
		return drain(c.Chat.Completions.NewStreaming(ctx, p), readChat)
	})
	run("chat.tools", func() (any, error) {
		p := chatParams()
		p.Tools = []openai.ChatCompletionToolUnionParam{openai.ChatCompletionFunctionTool(openai.FunctionDefinitionParam{
			Name: "weather", Parameters: openai.FunctionParameters{"type": "object", "properties": map[string]any{"city": map[string]any{"type": "string"}}},
		})}
		return c.Chat.Completions.New(ctx, p)
	})
	completion := openai.CompletionNewParams{
		Model: openai.CompletionNewParamsModel(model), Temperature: openai.Float(0), MaxTokens: openai.Int(8),
		Prompt: openai.CompletionNewParamsPromptUnion{OfString: openai.String("hello")},
	}
	run("completions", func() (any, error) { return c.Completions.New(ctx, completion) })
	run("completions.stream", func() (any, error) {
		return drain(c.Completions.NewStreaming(ctx, completion), readCompletion)
	})
	answer := responses.ResponseNewParams{
		Model: model, Temperature: openai.Float(0), MaxOutputTokens: openai.Int(8),
		Input: responses.ResponseNewParamsInputUnion{OfString: openai.String("hello")},
	}
	run("responses", func() (any, error) { return c.Responses.New(ctx, answer) })
	run("responses.stream", func() (any, error) {
		return kinds(c.Responses.NewStreaming(ctx, answer), func(e responses.ResponseStreamEventUnion) string { return e.Type })
	})
	openaiErrors(ctx, c)
}

func openaiErrors(ctx context.Context, c openai.Client) {
	wrong := openaiClient("/v1", "sk-wrong")
	run("error.key", func() (any, error) { return wrong.Chat.Completions.New(ctx, chatParams()) })
	run("error.key.stream", func() (any, error) {
		return drain(wrong.Chat.Completions.NewStreaming(ctx, chatParams()), readChat)
	})
	run("error.model", func() (any, error) {
		p := chatParams()
		p.Model = "no-such-model"
		return c.Chat.Completions.New(ctx, p)
	})
	run("error.temperature", func() (any, error) {
		p := chatParams()
		p.Temperature = openai.Float(-5)
		return c.Chat.Completions.New(ctx, p)
	})
	nested := openaiClient("/v1/v1", key)
	run("error.path", func() (any, error) { return nested.Models.List(ctx) })
}

func anthropicCalls(ctx context.Context) {
	client := func(secret string) anthropic.Client {
		return anthropic.NewClient(aoption.WithBaseURL(base), aoption.WithAuthToken(secret), aoption.WithMaxRetries(0), aoption.WithRequestTimeout(timeout))
	}
	c := client(key)
	params := anthropic.MessageNewParams{
		Model: anthropic.Model(model), MaxTokens: 8,
		Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock("hello"))},
	}
	zero := aoption.WithJSONSet("temperature", 0)
	run("messages", func() (any, error) { return c.Messages.New(ctx, params, zero) })
	run("messages.api_key", func() (any, error) {
		k := anthropic.NewClient(aoption.WithBaseURL(base), aoption.WithAPIKey(key), aoption.WithAuthToken(key), aoption.WithMaxRetries(0))
		return k.Messages.New(ctx, params, zero)
	})
	run("messages.stream", func() (any, error) {
		return kinds(c.Messages.NewStreaming(ctx, params, zero), func(e anthropic.MessageStreamEventUnion) string { return e.Type })
	})
	run("messages.count_tokens", func() (any, error) {
		return c.Messages.CountTokens(ctx, anthropic.MessageCountTokensParams{Model: params.Model, Messages: params.Messages})
	})
	run("models.list", func() (any, error) {
		page, err := c.Models.List(ctx, anthropic.ModelListParams{})
		if err != nil {
			return nil, err
		}
		var ids []any
		for _, m := range page.Data {
			ids = append(ids, m.ID)
		}
		return ids, nil
	})
	wrong := client("sk-wrong")
	run("error.key", func() (any, error) { return wrong.Messages.New(ctx, params) })
	run("error.model", func() (any, error) {
		p := params
		p.Model = "no-such-model"
		return c.Messages.New(ctx, p)
	})
	run("error.max_tokens", func() (any, error) {
		p := params
		p.MaxTokens = 100_000
		return c.Messages.New(ctx, p)
	})
}

func embeddingsCalls(ctx context.Context) {
	c := openaiClient("/v1", key)
	params := openai.EmbeddingNewParams{
		Model: model, Input: openai.EmbeddingNewParamsInputUnion{OfString: openai.String("hello")},
	}
	run("embeddings", func() (any, error) { return c.Embeddings.New(ctx, params) })
	run("embeddings.list", func() (any, error) {
		p := params
		p.Input = openai.EmbeddingNewParamsInputUnion{OfArrayOfStrings: []string{"hello", "world"}}
		return c.Embeddings.New(ctx, p)
	})
	run("error.dimensions", func() (any, error) {
		p := params
		p.Dimensions = openai.Int(3)
		return c.Embeddings.New(ctx, p)
	})
}
