// A TypeScript SDK as an agent that has to log in: {sdk: 1 or 2, url, redirect, document, calls}. It registers, or is
// known by its document; calls tools; comes back with another authorization where a tool wants one.
import { ask, done, settings } from './ask.mjs';

const { sdk, url, redirect, document, calls } = settings;
const { Client, StreamableHTTPClientTransport, UnauthorizedError } = sdk === 2
  ? await import('@modelcontextprotocol/client')
  : {
    ...await import('@modelcontextprotocol/sdk/client/index.js'),
    ...await import('@modelcontextprotocol/sdk/client/streamableHttp.js'),
    ...await import('@modelcontextprotocol/sdk/client/auth.js'),
  };

const kept = {};
const out = { scopes: [], said: [] };
let landed;
const authProvider = {
  redirectUrl: redirect,
  clientMetadataUrl: document || undefined,
  clientMetadata: {
    client_name: 'An Agent', redirect_uris: [redirect],
    // 1.x takes a refresh token for an answer to insufficient_scope, and never asks for more.
    grant_types: sdk === 2 ? ['authorization_code', 'refresh_token'] : ['authorization_code'],
    response_types: ['code'], token_endpoint_auth_method: 'none',
  },
  state: () => 'a state of this agent',
  clientInformation: () => kept.client,
  saveClientInformation: (client) => { kept.client = client; },
  tokens: () => kept.tokens,
  saveTokens: (tokens) => { kept.tokens = tokens; },
  saveCodeVerifier: (verifier) => { kept.verifier = verifier; },
  codeVerifier: () => kept.verifier,
  redirectToAuthorization: async (where) => {
    out.scopes.push((where.searchParams.get('scope') ?? '').split(' ').sort());
    landed = new URL((await ask({ go: where.href })).url);
  },
};

const transport = () => new StreamableHTTPClientTransport(new URL(url), { authProvider });
async function authorized(work) {
  for (let turn = 0; ; turn++) {
    let here;
    try {
      const client = new Client({ name: 'agent', version: '1' });
      here = transport();
      await client.connect(here);
      return await work(client);
    } catch (error) {
      if (!(error instanceof UnauthorizedError) || turn === 2) throw error;
      await here.finishAuth(sdk === 2 ? landed.searchParams : landed.searchParams.get('code'));
    }
  }
}

out.tools = await authorized(async (client) => (await client.listTools()).tools.map((tool) => tool.name));
for (const [name, args] of calls) {
  const result = await authorized((client) => client.callTool({ name, arguments: args }));
  out.said.push(result.content[0].text);
}
out.client = kept.client?.client_id ?? '';
out.scope = kept.tokens.scope;
done(out);
