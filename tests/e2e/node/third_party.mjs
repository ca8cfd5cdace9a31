// oidc-provider as a third party at which users have accounts: third_party.mjs {port, resource, document, life}. Clients
// register themselves, or have a metadata document (the one that is named, and no other); anybody logs in by a name.
// Prints {"ready": true} when it listens.
import { Provider, interactionPolicy } from 'oidc-provider';
import { settings } from './ask.mjs';

const { port, resource, document, life } = settings;
const provider = new Provider(`http://127.0.0.1:${port}`, {
  interactions: { policy: interactionPolicy.base() },
  findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
  fetch: (url, { dispatcher: _, ...how }) => globalThis.fetch(url, how), // documents stand on loopback here
  cookies: { keys: ['a key that signs its cookies'] },
  scopes: ['openid', 'offline_access', 'read'],
  rotateRefreshToken: true,
  ttl: { AccessToken: life, RefreshToken: 600, Grant: 600, Session: 600, Interaction: 600 },
  features: {
    devInteractions: { enabled: true },
    registration: { enabled: true },
    revocation: { enabled: true },
    introspection: { enabled: true, allowedPolicy: () => true },
    clientIdMetadataDocument: { enabled: Boolean(document), ack: 'draft-02', allowFetch: (_, id) => id === document, allowClient: () => true },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: (_, asked) => {
        if (asked !== resource) throw new Error('another resource');
        return { scope: 'read', audience: resource, accessTokenFormat: 'jwt', accessTokenTTL: life };
      },
      useGrantedResource: () => true,
    },
  },
});
provider.on('server_error', (_, error) => console.error(error));
for (const event of ['authorization.error', 'grant.error', 'registration_create.error', 'revocation.error'])
  provider.on(event, (_, error) => console.error(event, error));
provider.listen(port, '127.0.0.1', () => console.log(JSON.stringify({ ready: true })));
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
