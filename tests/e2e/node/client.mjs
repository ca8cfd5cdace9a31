// The TypeScript SDK as an agent: client.mjs URL STEPS, where STEPS is JSON, a list of [tool, arguments].
// Prints one JSON object: what the server is, what it offers, and what each tool said.
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import {
  CreateMessageRequestSchema, ElicitRequestSchema, ListRootsRequestSchema, LoggingMessageNotificationSchema,
} from '@modelcontextprotocol/sdk/types.js';

const [url, steps] = process.argv.slice(2);
const client = new Client({ name: 'e2e', version: '1' }, { capabilities: { sampling: {}, elicitation: {}, roots: {} } });
const text = 'sampled';
client.setRequestHandler(ElicitRequestSchema, async () => ({ action: 'accept', content: { name: 'Ada' } }));
client.setRequestHandler(CreateMessageRequestSchema, async () => (
  { model: 'm', role: 'assistant', content: { type: 'text', text } }));
client.setRequestHandler(ListRootsRequestSchema, async () => ({ roots: [{ uri: 'file:///root', name: 'root' }] }));
const out = { logs: [], progress: [], said: {} };
client.setNotificationHandler(LoggingMessageNotificationSchema, async (note) => { out.logs.push(note.params.data); });

const transport = new StreamableHTTPClientTransport(new URL(url));
await client.connect(transport);
out.revision = transport.protocolVersion;
out.session = Boolean(transport.sessionId);
await client.setLoggingLevel('info');
out.tools = (await client.listTools()).tools.map((tool) => tool.name);
out.resources = (await client.listResources()).resources.map((resource) => resource.uri);
out.prompts = (await client.listPrompts()).prompts.map((prompt) => prompt.name);
for (const [name, args] of JSON.parse(steps)) {
  const onprogress = (progress) => out.progress.push(progress.progress);
  out.said[name] = await client.callTool({ name, arguments: args }, undefined, { onprogress });
}
out.ping = await client.ping();
await transport.terminateSession();
await client.close();
console.log(JSON.stringify(out));
