// What two libraries for relying parties make of the auth provider: node token_side.mjs ISSUER SECRET RESOURCE
// Prints a line of JSON; any refusal of theirs or its is an error.
import * as oauth from "oauth4webapi";
import * as client from "openid-client";

const [issuer, secret, resource] = process.argv.slice(2);
const insecure = { [oauth.allowInsecureRequests]: true };
const found = {};

// oauth4webapi: discovery by RFC 8414, a secret, a DPoP proof, introspection, revocation
const url = new URL(issuer);
const answered = await oauth.discoveryRequest(url, { algorithm: "oauth2", ...insecure });
const server = await oauth.processDiscoveryResponse(url, answered);
const robot = { client_id: "robot" };
const basic = oauth.ClientSecretBasic(secret);
const parameters = new URLSearchParams({ resource, scope: "read" });

let response = await oauth.clientCredentialsGrantRequest(server, robot, basic, parameters, insecure);
const bearer = await oauth.processClientCredentialsResponse(server, robot, response);
found.bearer = bearer.token_type;

const keys = await oauth.generateKeyPair("ES256");
const DPoP = oauth.DPoP(robot, keys);
response = await oauth.clientCredentialsGrantRequest(server, robot, basic, parameters, { DPoP, ...insecure });
const bound = await oauth.processClientCredentialsResponse(server, robot, response);
found.bound = bound.token_type;

const api = { client_id: "api" };
response = await oauth.introspectionRequest(server, api, basic, bearer.access_token, insecure);
const told = await oauth.processIntrospectionResponse(server, api, response);
found.introspected = [told.active, told.client_id, told.aud];

// A resource server's check of RFC 9068, by what is published.
const request = new Request(resource, { headers: { authorization: `Bearer ${bearer.access_token}` } });
const claims = await oauth.validateJwtAccessToken(server, request, resource, insecure);
found.validated = [claims.sub, claims.scope];

response = await oauth.revocationRequest(server, robot, basic, bearer.access_token, insecure);
await oauth.processRevocationResponse(response);
response = await oauth.introspectionRequest(server, api, basic, bearer.access_token, insecure);
found.revoked = (await oauth.processIntrospectionResponse(server, api, response)).active;

// A device, as far as it goes alone; and a pushed request.
const app = { client_id: "app" };
response = await oauth.deviceAuthorizationRequest(server, app, basic, parameters, insecure);
const device = await oauth.processDeviceAuthorizationResponse(server, app, response);
response = await oauth.deviceCodeGrantRequest(server, app, basic, device.device_code, insecure);
found.device = await oauth.processDeviceCodeResponse(server, app, response).then(() => "", (error) => error.error);
const pushed = new URLSearchParams({
  response_type: "code", client_id: "app", redirect_uri: "https://app.example.com/cb", scope: "read", resource,
  code_challenge: await oauth.calculatePKCECodeChallenge(oauth.generateRandomCodeVerifier()),
  code_challenge_method: "S256",
});
response = await oauth.pushedAuthorizationRequest(server, app, basic, pushed, insecure);
found.pushed = (await oauth.processPushedAuthorizationResponse(server, app, response)).expires_in;

// openid-client: discovery by OpenID, the secret in the form, a client that registers itself, token exchange
const execute = [client.allowInsecureRequests];
const config = await client.discovery(url, "robot", {}, client.ClientSecretPost(secret), { execute });
found.post = (await client.clientCredentialsGrant(config, { resource })).token_type;
const registered = await client.dynamicClientRegistration(
  url,
  { redirect_uris: ["http://127.0.0.1/cb"], grant_types: ["authorization_code", "refresh_token"] },
  undefined,
  { execute },
);
found.registered = registered.clientMetadata().client_id.slice(0, 4);
const own = await client.discovery(url, "api", {}, client.ClientSecretBasic(secret), { execute });
const subject = await client.clientCredentialsGrant(config, { resource, scope: "read" });
const type = "urn:ietf:params:oauth:token-type:access_token";
const exchanged = await client.genericGrantRequest(own, "urn:ietf:params:oauth:grant-type:token-exchange", {
  subject_token: subject.access_token, subject_token_type: type, audience: resource,
});
found.exchanged = [exchanged.expires_in, exchanged.issued_token_type === type, exchanged.scope];

console.log(JSON.stringify(found));
