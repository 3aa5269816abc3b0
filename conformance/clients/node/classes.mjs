// Says which exception the official Node SDKs raise for each refusal.
//
// usage: BASE_URL=http://… NODE_CLIENTS=folder node classes.mjs openai|anthropic < codes
//
// Each line of the input is a reason's code, which is sent as the key: the
// server answers with that refusal. Prints one line of JSON per call.

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const { BASE_URL: base, NODE_CLIENTS: folder } = process.env;
const require = createRequire(pathToFileURL(folder + '/'));
const messages = [{ role: 'user', content: 'hello' }];

const calls = {
  openai: (apiKey, stream) => {
    const OpenAI = require('openai').default;
    return new OpenAI({ baseURL: base + '/v1', apiKey, maxRetries: 1 }).chat.completions.create({ model: 'm', messages, stream });
  },
  anthropic: (apiKey, stream) => {
    const Anthropic = require('@anthropic-ai/sdk').default;
    return new Anthropic({ baseURL: base, apiKey, maxRetries: 1 }).messages.create({ model: 'm', max_tokens: 9, messages, stream });
  },
};

async function ask(code, stream) {
  const line = { code, stream };
  try {
    await calls[process.argv[2]](code, stream);
  } catch (e) {
    line.classes = [];
    for (let p = Object.getPrototypeOf(e); p && p !== Object.prototype; p = Object.getPrototypeOf(p)) line.classes.push(p.constructor.name);
    line.said = e.code ?? null;
    line.reason = e.headers?.get('x-vallum-reason') ?? null;
    line.retry_after = e.headers?.get('retry-after') ?? null;
    line.request_id = e.requestID ?? null;
  }
  console.log(JSON.stringify(line));
}

const codes = readFileSync(0, 'utf8').split('\n').filter(Boolean);
await Promise.all(codes.flatMap((code) => [ask(code, false), ask(code, true)]));
