// Load a client document and check an assertion and a request, as the reference's OAuth server does.
// Usage: oauth_client.mjs JSON, with clientId, document, assertion, issuer, request
import { ClientManager } from './node_modules/@atproto/oauth-provider/dist/client/client-manager.js'
import { buildMetadata } from './node_modules/@atproto/oauth-provider/dist/metadata/build-metadata.js'

const { clientId, document, assertion, issuer, request } = JSON.parse(process.argv[2])
const store = () => {
  const held = new Map()
  return { get: (key) => held.get(key), set: (key, value) => void held.set(key, value), del: (key) => void held.delete(key) }
}
const answer = async () =>
  new Response(JSON.stringify(document), { headers: { 'content-type': 'application/json' } })
const manager = new ClientManager(
  buildMetadata(issuer), undefined, {}, undefined, null, answer, store(), store(),
)
const client = await manager.getClient(clientId)
const authentication = await client.authenticate(
  {
    client_id: clientId,
    client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer',
    client_assertion: assertion,
  },
  { authorizationServerIdentifier: issuer },
)
const asked = client.validateRequest(request)
console.log(JSON.stringify({
  method: authentication.method,
  kid: authentication.kid,
  refreshDays: client.refreshLifetime / 86400e3,
  scope: asked.scope,
}))
