package reply

import "strconv"

// Model is one entry of the model list as a caller may see it: no root, parent or permission, which in vLLM's own list
// show paths on the server's disk and its adapters (entrypoints/openai/models/protocol.py, ModelCard).
type Model struct {
	ID          string // the name that requests use
	Created     int64  // seconds since 1970
	MaxModelLen int64  // tokens; left out when 0. Continue and others read it from data[0]
	OwnedBy     string // "vllm" when empty: OpenAI's clients require a string
}

// ModelList is the body of GET /v1/models in OpenAI's shape, which Anthropic's clients read as well.
func ModelList(models []Model) []byte {
	b := make([]byte, 0, 64+128*len(models))
	b = append(b, `{"object":"list","data":[`...)
	for i, m := range models {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendModel(b, m)
	}
	return append(b, "]}\n"...)
}

// OneModel is the body of GET /v1/models/{model}, which the official clients call and vLLM does not serve: the model of
// the list with this id. It is false when the list has none.
func OneModel(models []Model, id string) (body []byte, ok bool) {
	for _, m := range models {
		if m.ID == id {
			return append(appendModel(nil, m), '\n'), true
		}
	}
	return nil, false
}

func appendModel(b []byte, m Model) []byte {
	owner := m.OwnedBy
	if owner == "" {
		owner = "vllm"
	}
	b = append(b, `{"id":`...)
	b = appendString(b, m.ID)
	b = append(b, `,"object":"model","created":`...)
	b = strconv.AppendInt(b, m.Created, 10)
	b = append(b, `,"owned_by":`...)
	b = appendString(b, owner)
	if m.MaxModelLen > 0 {
		b = append(b, `,"max_model_len":`...)
		b = strconv.AppendInt(b, m.MaxModelLen, 10)
	}
	return append(b, '}')
}
