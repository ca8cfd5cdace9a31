// openid-client as a relying party: code flow with PAR and DPoP, refresh, userinfo, end of session, the device flow.
import * as client from 'openid-client';
import { ask, done, refused, settings } from './ask.mjs';

const { issuer, resource, redirect, secret, bye } = settings;
const insecure = { execute: [client.allowInsecureRequests] };
const config = await client.discovery(new URL(issuer), 'web', {}, client.ClientSecretBasic(secret), insecure);
client.enableNonRepudiationChecks(config);
const out = {};

// The device flow: the person is at it first.
const DPoP = client.getDPoPHandle(config, await client.randomDPoPKeyPair('ES256'));
const device = await client.initiateDeviceAuthorization(config, { scope: 'openid mcp', resource });
out.device = Object.keys(device).sort();
await ask({ allow: device.verification_uri_complete });
// It has been allowed by now, so nobody need wait before the first question.
const polled = client.pollDeviceAuthorizationGrant(config, { ...device, interval: 1 }, { resource }, { DPoP });

// Code flow: pushed, with PKCE, state and nonce, bound to a key.
const verifier = client.randomPKCECodeVerifier();
const checks = { pkceCodeVerifier: verifier, expectedState: client.randomState(), expectedNonce: client.randomNonce() };
const parameters = {
  redirect_uri: redirect, scope: 'openid email profile offline_access mcp', resource,
  code_challenge: await client.calculatePKCECodeChallenge(verifier), code_challenge_method: 'S256',
  state: checks.expectedState, nonce: checks.expectedNonce,
};
const start = await client.buildAuthorizationUrlWithPAR(config, parameters, { DPoP });
out.start = [...start.searchParams.keys()].sort();
const landed = new URL((await ask({ go: start.href })).url);

// Somebody else's answer is refused before the code goes anywhere.
const mixed = new URL(landed);
mixed.searchParams.set('iss', 'http://127.0.0.1:1');
out.mixed = await refused(client.authorizationCodeGrant(config, mixed, checks, {}, { DPoP }));
const without = new URL(landed);
without.searchParams.delete('iss');
out.without = await refused(client.authorizationCodeGrant(config, without, checks, {}, { DPoP }));

const tokens = await client.authorizationCodeGrant(config, landed, checks, { resource }, { DPoP });
out.claims = tokens.claims();
out.type = tokens.token_type;
out.scope = tokens.scope;
out.again = await refused(client.authorizationCodeGrant(config, landed, checks, { resource }, { DPoP }));

// Another one, because that second use ended the first grant.
async function login(scope, more = {}) {
  const pkceCodeVerifier = client.randomPKCECodeVerifier();
  const expectedState = client.randomState();
  const url = client.buildAuthorizationUrl(config, {
    redirect_uri: redirect, scope, state: expectedState, code_challenge_method: 'S256',
    code_challenge: await client.calculatePKCECodeChallenge(pkceCodeVerifier), ...more,
  });
  const back = new URL((await ask({ go: url.href })).url);
  return [back, { pkceCodeVerifier, expectedState, idTokenExpected: scope.includes('openid') }];
}
const [back, expected] = await login('openid email profile offline_access');
const own = await client.authorizationCodeGrant(config, back, expected, {}, { DPoP });
out.userinfo = await client.fetchUserInfo(config, own.access_token, own.claims().sub, { DPoP });
const renewed = await client.refreshTokenGrant(config, own.refresh_token, {}, { DPoP });
out.rotated = renewed.refresh_token !== own.refresh_token;

// The bound token at the gateway: with a proof, and without.
const [third, wanted] = await login('mcp', { resource, dpop_jkt: await DPoP.calculateThumbprint() });
const bound = await client.authorizationCodeGrant(config, third, wanted, { resource }, { DPoP });
const headers = new Headers({
  'content-type': 'application/json', accept: 'application/json, text/event-stream', 'mcp-protocol-version': '2025-11-25',
});
const body = JSON.stringify({
  jsonrpc: '2.0', id: 1, method: 'initialize',
  params: { protocolVersion: '2025-11-25', capabilities: {}, clientInfo: { name: 'rp', version: '1' } },
});
const at = new URL(resource);
const shown = await client.fetchProtectedResource(config, bound.access_token, at, 'POST', body, headers, { DPoP });
out.bound = shown.status;
headers.set('authorization', `Bearer ${bound.access_token}`);
out.bare = (await fetch(at, { method: 'POST', headers, body })).status;

const got = await polled;
out.deviceClaims = got.claims().sub;

// What is taken back, and the end.
out.before = (await client.tokenIntrospection(config, renewed.access_token)).active;
await client.tokenRevocation(config, renewed.refresh_token);
out.after = await refused(client.refreshTokenGrant(config, renewed.refresh_token, {}, { DPoP }));
const end = client.buildEndSessionUrl(config, { id_token_hint: own.id_token, post_logout_redirect_uri: bye, state: 's-1' });
out.bye = (await ask({ go: end.href })).url;

// The client for itself, with its secret in the form; and one that registers itself.
const posts = await client.discovery(new URL(issuer), 'web', {}, client.ClientSecretPost(secret), insecure);
out.posted = (await client.clientCredentialsGrant(posts, { resource, scope: 'mcp' })).token_type;
const key = client.getDPoPHandle(posts, await client.randomDPoPKeyPair('ES256'));
out.own = (await client.clientCredentialsGrant(posts, { resource, scope: 'mcp' }, { DPoP: key })).token_type;
const registered = await client.dynamicClientRegistration(
  new URL(issuer), { redirect_uris: [redirect], token_endpoint_auth_method: 'none' }, client.None(), insecure);
out.registered = registered.clientMetadata().client_id.slice(0, 4);
done(out);
