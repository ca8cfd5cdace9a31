// The TypeScript SDK 2 as an agent: client2.mjs URL STEPS MODE, where STEPS is JSON, a list of [tool, arguments], and
// MODE `legacy`, `auto` or a revision. Prints one JSON object: what it negotiated, what is offered, what each tool said.
import { Client, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';

const [url, steps, mode] = process.argv.slice(2);
const capabilities = { sampling: {}, elicitation: {}, roots: {} };
const versionNegotiation = { mode: mode.startsWith('2') ? { pin: mode } : mode };
const client = new Client({ name: 'e2e', version: '1' }, { capabilities, versionNegotiation });
client.setRequestHandler('elicitation/create', async () => (
  { action: 'accept', content: { username: 'Ada', email: 'ada@example.com', name: 'Ada' } }));
client.setRequestHandler('sampling/createMessage', async () => (
  { model: 'm', role: 'assistant', content: { type: 'text', text: 'sampled' } }));
client.setRequestHandler('roots/list', async () => ({ roots: [{ uri: 'file:///root', name: 'root' }] }));

const out = { progress: [], said: {} };
await client.connect(new StreamableHTTPClientTransport(new URL(url)));
out.revision = client.getNegotiatedProtocolVersion();
out.tools = (await client.listTools()).tools.map((tool) => tool.name);
out.resources = (await client.listResources()).resources.map((resource) => resource.uri);
out.prompts = (await client.listPrompts()).prompts.map((prompt) => prompt.name);
for (const [name, args] of JSON.parse(steps)) {
  const onprogress = (progress) => out.progress.push(progress.progress);
  const result = await client.callTool({ name, arguments: args }, { onprogress });
  out.said[name] = result.content.map((part) => part.text ?? part.type);
}
await client.close();
console.log(JSON.stringify(out));
