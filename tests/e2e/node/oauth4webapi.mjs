// oauth4webapi as a relying party and as a resource server: metadata of the resource and of the issuer, registration,
// private_key_jwt, client credentials, tokens checked by RFC 9068, introspection, exchange, revocation.
import * as oauth from 'oauth4webapi';
import { ask, done, refused, settings } from './ask.mjs';

const { issuer, resource, redirect, secret, key } = settings;
const insecure = { [oauth.allowInsecureRequests]: true };
const out = {};

// From the resource to its issuer, in both forms of metadata.
const place = new URL(resource);
const told = await oauth.processResourceDiscoveryResponse(place, await oauth.resourceDiscoveryRequest(place, insecure));
out.servers = told.authorization_servers;
const where = new URL(told.authorization_servers[0]);
const documents = {};
for (const algorithm of ['oauth2', 'oidc'])
  documents[algorithm] = await oauth.processDiscoveryResponse(
    where, await oauth.discoveryRequest(where, { algorithm, ...insecure }));
out.same = JSON.stringify(documents.oauth2) === JSON.stringify(documents.oidc);
const as = documents.oauth2;

// Who signs its assertions.
const signing = await crypto.subtle.importKey('jwk', key, { name: 'ECDSA', namedCurve: 'P-256' }, false, ['sign']);
const robot = { client_id: 'robot' };
const proves = oauth.PrivateKeyJwt({ key: signing, kid: key.kid });
async function token(parameters) {
  const response = await oauth.clientCredentialsGrantRequest(as, robot, proves, new URLSearchParams(parameters), insecure);
  return oauth.processClientCredentialsResponse(as, robot, response);
}
const tokens = await token({ scope: 'mcp', resource });
out.scope = tokens.scope;
const seen = new Request(resource, { headers: { authorization: `Bearer ${tokens.access_token}` } });
out.claims = await oauth.validateJwtAccessToken(as, seen, resource, insecure);
out.elsewhere = await refused(oauth.validateJwtAccessToken(as, seen, 'https://elsewhere.example.com', insecure));
out.tooMuch = await refused(token({ scope: 'calculate', resource }));
out.foreign = await refused(token({ resource: 'https://elsewhere.example.com' }));
out.twice = await refused(oauth.genericTokenEndpointRequest(
  as, robot, oauth.ClientSecretPost(secret), 'client_credentials', new URLSearchParams({ resource }), insecure,
).then((response) => oauth.processGenericTokenEndpointResponse(as, robot, response)));

// The resource server asks about it.
const gateway = { client_id: 'gateway' };
const basic = oauth.ClientSecretBasic(secret);
const introspect = async (some) => oauth.processIntrospectionResponse(
  as, gateway, await oauth.introspectionRequest(as, gateway, basic, some, insecure));
out.active = (await introspect(tokens.access_token)).active;

// Given back, it is nothing any more.
await oauth.processRevocationResponse(
  await oauth.revocationRequest(as, robot, proves, tokens.access_token, insecure));
out.inactive = (await introspect(tokens.access_token)).active;

// A client that registers itself, and its user.
const registered = await oauth.processDynamicClientRegistrationResponse(await oauth.dynamicClientRegistrationRequest(as, {
  client_name: 'A Desk', redirect_uris: [redirect], token_endpoint_auth_method: 'none',
}, insecure));
out.id = registered.client_id;
out.registered = registered.client_id.slice(0, 4);
const verifier = oauth.generateRandomCodeVerifier();
const state = oauth.generateRandomState();
const url = new URL(as.authorization_endpoint);
url.search = new URLSearchParams({
  client_id: registered.client_id, redirect_uri: redirect, response_type: 'code', scope: 'mcp', resource, state,
  code_challenge: await oauth.calculatePKCECodeChallenge(verifier), code_challenge_method: 'S256',
});
const landed = new URL((await ask({ go: url.href })).url);
const parameters = oauth.validateAuthResponse(as, registered, landed, state);
const redeem = async (one) => oauth.processAuthorizationCodeResponse(
  as, registered, await oauth.authorizationCodeGrantRequest(
    as, registered, oauth.None(), parameters, redirect, one,
    { additionalParameters: new URLSearchParams({ resource }), ...insecure }));
const granted = await redeem(verifier);
out.user = (await oauth.validateJwtAccessToken(as, new Request(resource, {
  headers: { authorization: `Bearer ${granted.access_token}` },
}), resource, insecure)).sub;

// The gateway exchanges it for the next hop; the application stays in it as who acts.
const exchange = await oauth.genericTokenEndpointRequest(
  as, gateway, basic, 'urn:ietf:params:oauth:grant-type:token-exchange', new URLSearchParams({
    subject_token: granted.access_token, subject_token_type: 'urn:ietf:params:oauth:token-type:access_token',
    audience: 'https://next.example.com', scope: 'mcp',
  }), insecure);
const exchanged = await oauth.processGenericTokenEndpointResponse(as, gateway, exchange);
out.life = exchanged.expires_in;
const next = new Request(resource, { headers: { authorization: `Bearer ${exchanged.access_token}` } });
out.exchanged = await oauth.validateJwtAccessToken(as, next, 'https://next.example.com', insecure);

out.redeemed = await refused(redeem(verifier));

// A device whose user has not come yet; a request that is pushed.
const web = { client_id: 'web' };
const asked = new URLSearchParams({ resource, scope: 'mcp' });
const device = await oauth.processDeviceAuthorizationResponse(
  as, web, await oauth.deviceAuthorizationRequest(as, web, basic, asked, insecure));
out.device = (await oauth.processDeviceCodeResponse(
  as, web, await oauth.deviceCodeGrantRequest(as, web, basic, device.device_code, insecure),
).catch((error) => error)).error;
const pushed = await oauth.processPushedAuthorizationResponse(as, web, await oauth.pushedAuthorizationRequest(
  as, web, basic, new URLSearchParams({
    client_id: 'web', redirect_uri: redirect, response_type: 'code', scope: 'mcp', resource,
    code_challenge: await oauth.calculatePKCECodeChallenge(verifier), code_challenge_method: 'S256',
  }), insecure));
out.pushed = pushed.expires_in;
done(out);
