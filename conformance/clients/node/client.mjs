// Runs a fixed list of calls with the official Node SDKs at their defaults.
//
// usage: BASE_URL=http://… KEY=… MODEL=… NODE_CLIENTS=folder node client.mjs openai|anthropic|embeddings
//
// Prints one line of JSON per call: {case, result} or {case, error}, without
// what differs between two runs of the same server.

import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const { BASE_URL: base, KEY: key, MODEL: model, NODE_CLIENTS: folder } = process.env;
const require = createRequire(pathToFileURL(folder + '/'));
const options = { maxRetries: 0, timeout: 60_000 };

const volatile = new Set([
  'id', 'created', 'created_at', 'completed_at', 'system_fingerprint', 'item_id', 'call_id', 'response_id',
  'prompt_tokens_details', 'completion_tokens_details', 'input_tokens_details', 'output_tokens_details',
  'cache_read_input_tokens', 'cache_creation_input_tokens', '_request_id', 'root', 'permission', 'owned_by',
]);

function plain(v) {
  if (Array.isArray(v)) return v.map(plain);
  if (typeof v === 'number') return Math.round(v * 1e4) / 1e4;
  if (v === null || typeof v !== 'object') return v;
  if ('cache_read_input_tokens' in v) {
    // vLLM counts cached tokens apart on messages; a gateway may hide which were.
    v = { ...v, input_tokens: v.input_tokens + (v.cache_read_input_tokens ?? 0) + (v.cache_creation_input_tokens ?? 0) };
  }
  const out = {};
  for (const k of Object.keys(v).sort()) {
    if (!volatile.has(k) && v[k] !== null && v[k] !== undefined && typeof v[k] !== 'function') out[k] = plain(v[k]);
  }
  return out;
}

async function run(name, call) {
  let line;
  try {
    line = { case: name, result: plain(await call()) };
  } catch (e) {
    line = { case: name, error: { class: e.constructor.name, status: e.status ?? null } };
    if (line.error.status === null) line.error.text = String(e).slice(0, 200);
  }
  console.log(JSON.stringify(line));
}

// A stream as what a user sees of it: its text, why it ended, its usage. The
// number of chunks is left out: vLLM joins tokens that wait for a slow reader.
async function joined(stream, text) {
  const chunks = [];
  for await (const c of await stream) chunks.push(c);
  return {
    text: chunks.map((c) => text(c) ?? '').join(''),
    end: chunks.findLast((c) => c.choices.length)?.choices[0].finish_reason,
    bare: chunks.filter((c) => !c.choices.length).length,
    usage: chunks.filter((c) => c.usage).map((c) => c.usage),
  };
}

// The types of a stream's events, repetitions once.
async function types(stream) {
  const out = [];
  for await (const e of await stream) if (out.at(-1) !== e.type) out.push(e.type);
  return out;
}

async function list(page) {
  const out = [];
  for await (const m of await page) out.push(m.id);
  return out.sort();
}

const messages = [{ role: 'user', content: 'hello' }];
const schema = { type: 'object', properties: { yes: { type: 'boolean' } }, required: ['yes'], additionalProperties: false };

async function openaiCalls() {
  const OpenAI = require('openai').default ?? require('openai');
  const c = new OpenAI({ baseURL: base + '/v1', apiKey: key, ...options });
  const zero = { model, temperature: 0, max_tokens: 8 };
  const create = (more) => c.chat.completions.create({ messages, ...zero, ...more });
  const text = (e) => e.choices[0]?.delta?.content;

  await run('models.list', () => list(c.models.list()));
  await run('models.retrieve', async () => (await c.models.retrieve(model)).id);
  await run('chat', () => create({}));
  await run('chat.parameters', () => create({ n: 2, logprobs: true, top_logprobs: 2, seed: 7, stop: ['zzz'], user: 'u', temperature: 0.0001 }));
  await run('chat.stream', () => joined(create({ stream: true }), text));
  await run('chat.stream.usage', () => joined(create({ stream: true, stream_options: { include_usage: true } }), text));
  await run('chat.tools', () => create({ tools: [{ type: 'function', function: { name: 'weather', description: 'd', parameters: schema } }] }));
  await run('chat.json_schema', () => create({ max_tokens: 64, response_format: { type: 'json_schema', json_schema: { name: 'a', schema, strict: true } } }));
  await run('completions', () => c.completions.create({ prompt: 'hello', ...zero }));
  await run('completions.stream', () => joined(c.completions.create({ prompt: 'hello', stream: true, ...zero }), (e) => e.choices[0].text));
  const answer = { model, temperature: 0, max_output_tokens: 8, input: 'hello' };
  await run('responses', () => c.responses.create(answer));
  await run('responses.stream', () => types(c.responses.create({ ...answer, stream: true })));

  const wrong = new OpenAI({ baseURL: base + '/v1', apiKey: 'sk-wrong', ...options });
  await run('error.key', () => wrong.chat.completions.create({ messages, ...zero }));
  await run('error.key.stream', () => joined(wrong.chat.completions.create({ messages, stream: true, ...zero }), text));
  await run('error.model', () => create({ model: 'no-such-model' }));
  await run('error.temperature', () => create({ temperature: -5 }));
  await run('error.context', () => create({ messages: [{ role: 'user', content: '0123456789'.repeat(900) }] }));
  await run('error.path', () => list(new OpenAI({ baseURL: base + '/v1/v1', apiKey: key, ...options }).models.list()));
}

async function anthropicCalls() {
  const Anthropic = require('@anthropic-ai/sdk').default ?? require('@anthropic-ai/sdk');
  const c = new Anthropic({ baseURL: base, authToken: key, apiKey: null, ...options });
  const body = { model, max_tokens: 8, messages, temperature: 0 };

  await run('messages', () => c.messages.create(body));
  await run('messages.system', () => c.messages.create({ ...body, system: [{ type: 'text', text: 'be brief', cache_control: { type: 'ephemeral' } }] }));
  await run('messages.tools', () => c.messages.create({ ...body, tools: [{ name: 'weather', description: 'd', input_schema: schema }] }));
  await run('messages.stream', () => types(c.messages.create({ ...body, stream: true })));
  await run('messages.stream.helper', () => c.messages.stream(body).finalMessage());
  await run('messages.count_tokens', () => c.messages.countTokens({ model, messages }));
  await run('models.list', () => list(c.models.list()));
  await run('models.retrieve', async () => (await c.models.retrieve(model)).id);

  const wrong = new Anthropic({ baseURL: base, authToken: 'sk-wrong', apiKey: null, ...options });
  await run('error.key', () => wrong.messages.create(body));
  await run('error.model', () => c.messages.create({ ...body, model: 'no-such-model' }));
  await run('error.max_tokens', () => c.messages.create({ ...body, max_tokens: 100_000 }));
}

async function embeddingsCalls() {
  const OpenAI = require('openai').default ?? require('openai');
  const c = new OpenAI({ baseURL: base + '/v1', apiKey: key, ...options });
  await run('embeddings', () => c.embeddings.create({ model, input: 'hello' }));
  await run('embeddings.float', () => c.embeddings.create({ model, input: ['hello', 'world'], encoding_format: 'float' }));
  await run('error.dimensions', () => c.embeddings.create({ model, input: 'hello', dimensions: 3 }));
}

await { openai: openaiCalls, anthropic: anthropicCalls, embeddings: embeddingsCalls }[process.argv[2]]();
