// oidc-provider as a foreign identity provider: oidc_provider.mjs {port, gateway, audience, secret}. It has its own pages
// for developers, where anybody logs in by a name; prints {"ready": true} when it listens.
import { Provider, interactionPolicy } from 'oidc-provider';
import { settings } from './ask.mjs';

const { port, gateway, audience, secret } = settings;
const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [
    { client_id: 'tollhouse', client_secret: secret, redirect_uris: [`${gateway}/oauth/callback/idp`],
      token_endpoint_auth_method: 'client_secret_basic' },
    { client_id: 'pages', client_secret: secret, redirect_uris: [`${gateway}/.login/callback`],
      post_logout_redirect_uris: [`${gateway}/.login/logout`], backchannel_logout_uri: `${gateway}/.login/backchannel`,
      backchannel_logout_session_required: true },
    { client_id: 'robot', client_secret: secret, grant_types: ['client_credentials'], response_types: [], redirect_uris: [] },
  ],
  interactions: { policy: interactionPolicy.base() },
  findAccount: (_, id) => ({ accountId: id, claims: () => ({
    sub: id, name: `${id} of the provider`, email: `${id}@idp.example.com`, email_verified: true, groups: ['staff'],
  }) }),
  claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['name', 'groups'] },
  fetch: (url, { dispatcher, ...options }) => fetch(url, options), // its own guard lets nothing on this machine be told
  cookies: { keys: ['a key that signs its cookies'] },
  features: {
    devInteractions: { enabled: true },
    clientCredentials: { enabled: true },
    backchannelLogout: { enabled: true },
    rpInitiatedLogout: { enabled: true },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: () => ({ scope: 'mcp', audience, accessTokenFormat: 'jwt', accessTokenTTL: 60 }),
      useGrantedResource: () => false,
    },
  },
});
provider.on('backchannel.error', (_, error) => console.error(error));
provider.on('server_error', (_, error) => console.error(error));
provider.listen(port, '127.0.0.1', () => console.log(JSON.stringify({ ready: true })));
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
