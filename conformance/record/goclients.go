package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/anthropics/anthropic-sdk-go"
	aoption "github.com/anthropics/anthropic-sdk-go/option"
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"

	"github.com/vallum/vallum/conformance/parts"
)

// goClients runs the official Go SDKs in this process.
func goClients(ctx context.Context, base string) error {
	if err := os.Unsetenv("ANTHROPIC_API_KEY"); err != nil {
		return err
	}
	return errors.Join(goOpenAI(ctx, base+"/openai-go/"+parts.OpenAIGo), goAnthropic(ctx, base+"/anthropic-sdk-go/"+parts.AnthropicGo))
}

func goOpenAI(ctx context.Context, base string) error {
	client := func(name string) openai.Client {
		return openai.NewClient(option.WithBaseURL(base+"/"+name+"/v1"), option.WithAPIKey("key"), option.WithMaxRetries(0))
	}
	chat := openai.ChatCompletionNewParams{Model: "tiny", Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("Grüße <b> & hello")}}
	var errs []error
	keep := func(name string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	c := client("plain")
	_, err := c.Chat.Completions.New(ctx, chat)
	keep("chat", err)

	c = client("stream")
	stream := c.Chat.Completions.NewStreaming(ctx, chat)
	for stream.Next() {
	}
	keep("stream", stream.Err())

	withTools := chat
	withTools.Tools = []openai.ChatCompletionToolUnionParam{openai.ChatCompletionFunctionTool(openai.FunctionDefinitionParam{
		Name: "weather", Parameters: openai.FunctionParameters{"type": "object", "properties": map[string]any{"city": map[string]string{"type": "string"}}},
	})}
	withTools.Seed, withTools.Temperature, withTools.MaxCompletionTokens = openai.Int(1<<62), openai.Float(0), openai.Int(8)
	c = client("tool-loop")
	first, err := c.Chat.Completions.New(ctx, withTools)
	keep("tools", err)
	if err == nil && len(first.Choices[0].Message.ToolCalls) > 0 {
		m := first.Choices[0].Message
		withTools.Messages = append(withTools.Messages, m.ToParam(), openai.ToolMessage("sunny", m.ToolCalls[0].ID))
		_, err = c.Chat.Completions.New(ctx, withTools)
		keep("tool result", err)
	}
	c = client("plain")
	_, err = c.Completions.New(ctx, openai.CompletionNewParams{Model: "tiny", Prompt: openai.CompletionNewParamsPromptUnion{OfString: openai.String("hello")}})
	keep("completions", err)
	_, err = c.Embeddings.New(ctx, openai.EmbeddingNewParams{Model: "tiny", Input: openai.EmbeddingNewParamsInputUnion{OfArrayOfStrings: []string{"a", "b"}}})
	keep("embeddings", err)
	_, err = c.Responses.New(ctx, responses.ResponseNewParams{Model: "tiny", Input: responses.ResponseNewParamsInputUnion{OfString: openai.String("hello")}})
	keep("responses", err)
	_, err = c.Models.List(ctx)
	keep("models", err)
	return errors.Join(errs...)
}

func goAnthropic(ctx context.Context, base string) error {
	client := func(name string) anthropic.Client {
		return anthropic.NewClient(aoption.WithBaseURL(base+"/"+name), aoption.WithAPIKey("key"), aoption.WithMaxRetries(0))
	}
	params := anthropic.MessageNewParams{
		Model: "tiny", MaxTokens: 16,
		Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock("hello"))},
	}
	var errs []error
	c := client("plain")
	_, err := c.Messages.New(ctx, params)
	errs = append(errs, err)
	_, err = c.Messages.CountTokens(ctx, anthropic.MessageCountTokensParams{Model: "tiny", Messages: params.Messages})
	errs = append(errs, err)
	c = client("stream")
	stream := c.Messages.NewStreaming(ctx, params)
	for stream.Next() {
	}
	errs = append(errs, stream.Err())
	params.System = []anthropic.TextBlockParam{{Text: "be brief"}}
	params.Temperature = anthropic.Float(0.5)
	c = client("system")
	_, err = c.Messages.New(ctx, params)
	return errors.Join(append(errs, err)...)
}
