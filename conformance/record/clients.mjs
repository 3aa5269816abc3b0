// Drives the Node clients against the recorder, each as its documentation
// calls it, at its defaults.
//
// usage: BASE=http://127.0.0.1:PORT NODE_CLIENTS=folder node clients.mjs

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const { BASE: base, NODE_CLIENTS: folder } = process.env;
const require = createRequire(pathToFileURL(folder + '/'));
const load = (name) => import(pathToFileURL(require.resolve(name)));
let failed = 0;

function version(pkg) {
  return JSON.parse(readFileSync(path.join(folder, 'node_modules', pkg, 'package.json'), 'utf8')).version;
}
const url = (client, pkg, name, suffix = '') => `${base}/${client}/${version(pkg)}/${name}${suffix}`;

async function run(name, call) {
  try {
    await call();
  } catch (e) {
    failed++;
    console.error(`${name}: ${String(e).slice(0, 300)}`);
  }
}
async function drain(stream) {
  for await (const _ of await stream);
}

const messages = [{ role: 'user', content: 'Grüße 👋 hello' }];
const schema = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'], additionalProperties: false };
const tool = { type: 'function', function: { name: 'weather', description: 'd', parameters: schema } };

async function openai(pkg) {
  const { default: OpenAI } = await load(pkg);
  const c = (name) => new OpenAI({ baseURL: url('openai-node', pkg, name, '/v1'), apiKey: 'key', maxRetries: 0 });
  const chat = (name, more = {}) => run(name, () => c(name).chat.completions.create({ model: 'tiny', messages, ...more }));
  await chat('plain');
  await run('stream', () => drain(c('stream').chat.completions.create({ model: 'tiny', messages, stream: true, stream_options: { include_usage: true } })));
  await chat('parameters', { temperature: 1, top_p: 0.9, max_completion_tokens: 8, seed: 1, stop: null, user: 'u' });
  await chat('tools', { tools: [tool], tool_choice: 'auto', parallel_tool_calls: false });
  await chat('json-schema', { response_format: { type: 'json_schema', json_schema: { name: 'w', strict: true, schema } } });
  await run('completions', () => c('plain').completions.create({ model: 'tiny', prompt: 'hello' }));
  await run('embeddings', () => c('plain').embeddings.create({ model: 'tiny', input: 'hello' }));
  await run('responses', () => c('plain').responses.create({ model: 'tiny', input: 'hello' }));
  await run('responses-stream', () => drain(c('stream').responses.create({ model: 'tiny', input: messages, stream: true, instructions: 'be brief' })));
  await run('models', () => c('plain').models.list());
  await run('loop', async () => {
    const client = c('tool-loop');
    const first = await client.chat.completions.create({ model: 'tiny', messages, tools: [tool] });
    const m = first.choices[0].message;
    await client.chat.completions.create({ model: 'tiny', messages: [...messages, m, { role: 'tool', tool_call_id: m.tool_calls[0].id, content: 'sunny' }], tools: [tool] });
  });
}

async function anthropic() {
  const { default: Anthropic } = await load('@anthropic-ai/sdk');
  const c = (name) => new Anthropic({ baseURL: url('anthropic-node', '@anthropic-ai/sdk', name), apiKey: 'key', maxRetries: 0 });
  const body = { model: 'tiny', max_tokens: 16, messages };
  const tools = [{ name: 'weather', description: 'd', input_schema: schema }];
  await run('plain', () => c('plain').messages.create(body));
  await run('stream', () => drain(c('stream').messages.create({ ...body, stream: true })));
  await run('helper', () => c('stream-helper').messages.stream(body).finalMessage());
  await run('tools', () => c('tools').messages.create({ ...body, tools, tool_choice: { type: 'auto' }, system: 'be brief' }));
  await run('count', () => c('plain').messages.countTokens({ model: 'tiny', messages }));
  await run('models', () => c('plain').models.list());
}

async function vercel() {
  const { generateText, streamText, tool: define, embed, jsonSchema } = await load('ai');
  const { createOpenAI } = await load('@ai-sdk/openai');
  const { createOpenAICompatible } = await load('@ai-sdk/openai-compatible');
  const { createAnthropic } = await load('@ai-sdk/anthropic');
  const at = (client, name) => url(client, client === 'vercel-openai' ? '@ai-sdk/openai' : client === 'vercel-anthropic' ? '@ai-sdk/anthropic' : '@ai-sdk/openai-compatible', name, '/v1');
  const tools = { weather: define({ description: 'd', inputSchema: jsonSchema(schema), execute: async () => 'sunny' }) };
  const kinds = {
    'vercel-openai': (name) => createOpenAI({ baseURL: at('vercel-openai', name), apiKey: 'key' })('tiny'),
    'vercel-openai-chat': (name) => createOpenAI({ baseURL: at('vercel-openai', 'chat-' + name), apiKey: 'key' }).chat('tiny'),
    'vercel-compatible': (name) => createOpenAICompatible({ name: 'v', baseURL: at('vercel-compatible', name), apiKey: 'key' })('tiny'),
    'vercel-anthropic': (name) => createAnthropic({ baseURL: at('vercel-anthropic', name), apiKey: 'key' })('tiny'),
  };
  for (const [kind, model] of Object.entries(kinds)) {
    await run(kind, () => generateText({ model: model('plain'), prompt: 'hello', maxRetries: 0 }));
    await run(kind + '-stream', () => drain(streamText({ model: model('stream'), prompt: 'hello', maxRetries: 0 }).textStream));
    await run(kind + '-tools', () => generateText({ model: model('tools'), system: 'be brief', prompt: 'hello', tools, maxRetries: 0 }));
    await run(kind + '-stream-tools', () => drain(streamText({ model: model('stream-tools'), prompt: 'hello', tools, maxRetries: 0 }).textStream));
  }
  await run('embed', () => embed({ model: createOpenAI({ baseURL: at('vercel-openai', 'plain'), apiKey: 'key' }).embedding('tiny'), value: 'hello', maxRetries: 0 }));
}

async function langchain() {
  const { ChatOpenAI, OpenAIEmbeddings } = await load('@langchain/openai');
  const { ChatAnthropic } = await load('@langchain/anthropic');
  const at = (name) => url('langchain-js-openai', '@langchain/openai', name, '/v1');
  const chat = (name) => new ChatOpenAI({ model: 'tiny', apiKey: 'key', maxRetries: 0, configuration: { baseURL: at(name) } });
  await run('lc', () => chat('plain').invoke('hello'));
  await run('lc-stream', async () => drain(await chat('stream').stream('hello')));
  await run('lc-tools', () => chat('tools').bindTools([tool]).invoke('hello'));
  await run('lc-structured', () => chat('structured').withStructuredOutput(schema, { name: 'w' }).invoke('hello'));
  await run('lc-embed', () => new OpenAIEmbeddings({ model: 'tiny', apiKey: 'key', maxRetries: 0, configuration: { baseURL: at('plain') } }).embedQuery('hello'));
  const claude = new ChatAnthropic({ model: 'tiny', apiKey: 'key', maxRetries: 0, anthropicApiUrl: url('langchain-js-anthropic', '@langchain/anthropic', 'plain') });
  await run('lc-claude', () => claude.invoke('hello'));
}

for (const drive of [() => openai('openai'), () => openai('openai6'), anthropic, vercel, langchain]) await run('start', drive);
if (failed) {
  console.error(`${failed} case(s) ended with an error`);
  process.exit(1);
}
