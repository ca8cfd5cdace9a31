// A TypeScript SDK as an agent that can show URLs: {sdk: 1 or 2, url, token, mode, calls}. Each link that it is given
// it prints as a line, and agrees at once or not at all, as it is told.
import { ask, done, settings } from './ask.mjs';

const { sdk, url, token, mode, calls } = settings;
const { Client, StreamableHTTPClientTransport } = sdk === 2
  ? await import('@modelcontextprotocol/client')
  : {
    ...await import('@modelcontextprotocol/sdk/client/index.js'),
    ...await import('@modelcontextprotocol/sdk/client/streamableHttp.js'),
  };

const out = { links: [], completed: [], said: [] };
const capabilities = { elicitation: { url: {} } };
const elicited = async (request) => {
  out.links.push(request.params);
  return (await ask({ link: request.params.url })).answer;
};
const completed = (notification) => { out.completed.push(notification.params.elicitationId); };

let client;
if (sdk === 2) {
  const versionNegotiation = { mode: mode.startsWith('2') ? { pin: mode } : mode };
  client = new Client({ name: 'agent', version: '1' }, { capabilities, versionNegotiation });
  client.setRequestHandler('elicitation/create', elicited);
  if (mode === 'legacy') client.setNotificationHandler('notifications/elicitation/complete', completed);
} else {
  const types = await import('@modelcontextprotocol/sdk/types.js');
  client = new Client({ name: 'agent', version: '1' }, { capabilities });
  client.setRequestHandler(types.ElicitRequestSchema, elicited);
  client.setNotificationHandler(types.ElicitationCompleteNotificationSchema, completed);
}
const requestInit = { headers: { authorization: `Bearer ${token}` } };
await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit }));
for (const [name, args] of calls) {
  const result = await client.callTool({ name, arguments: args });
  out.said.push({ failed: Boolean(result.isError), text: result.content[0].text });
}
await client.close();
done(out);
